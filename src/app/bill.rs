//! What accepting would cost, before anybody pays it.

use sqlx::PgPool;

use crate::chunk::Tokenizer;
use crate::config::{Config, ProviderKind};
use crate::db;
use crate::db::app::{LoadedRow, Plan};
use crate::domain::SourceKey;
use crate::embedded::{self, Artifact};
use crate::jobs;

use super::lanes::rules;
use super::models::tokenizer;

/// Rows that are cut and counted, and how many of them are in memory at once.
const SAMPLE: i64 = 500;
const SLICE: usize = 50;

/// What embedding the rows that wait for a person's word may cost, judged by some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    pub rows: i64,
    /// Rows that it is judged by.
    pub sampled: i64,
    pub tokens: i64,
    /// Rows whose content is a file: nobody knows before it is read.
    pub files: i64,
}

/// Cuts and counts some rows as a job would, and takes the others to be like them.
///
/// # Errors
/// The database is away.
pub async fn estimate(config: &Config, pool: &PgPool, plan: &Plan) -> sqlx::Result<Estimate> {
    let mut connection = pool.acquire().await?;
    let (rows, keys) = db::app::sample_unpaid(&mut connection, plan, SAMPLE).await?;
    drop(connection);
    estimate_of(config, pool, plan, rows, &keys).await
}

/// As many of these keys as rows are judged by, from the whole length of the list.
pub fn thinned(keys: Vec<SourceKey>) -> Vec<SourceKey> {
    let most = usize::try_from(SAMPLE).unwrap_or(usize::MAX);
    let step = keys.len().div_ceil(most).max(1);
    keys.into_iter().step_by(step).collect()
}

/// As [`estimate`], for so many rows, judged by those with these keys.
///
/// # Errors
/// The database is away.
pub async fn estimate_of(
    config: &Config,
    pool: &PgPool,
    plan: &Plan,
    rows: i64,
    keys: &[SourceKey],
) -> sqlx::Result<Estimate> {
    let mut connection = pool.acquire().await?;
    let (rules, tokenizer) = (rules(plan), counting(config, plan));
    let (mut sampled, mut tokens, mut files) = (0, 0, 0);
    for slice in keys.chunks(SLICE) {
        for row in load(&mut connection, plan, slice).await? {
            sampled += 1;
            if row.is_file {
                files += 1;
            } else {
                tokens += jobs::tokens_of(plan, &rules, &tokenizer, &row);
            }
        }
    }
    let of_all = |count: usize| {
        let (count, sampled) = (i128::try_from(count).unwrap_or(i128::MAX), i128::from(sampled).max(1));
        i64::try_from((count * i128::from(rows) + sampled / 2) / sampled).unwrap_or(i64::MAX)
    };
    Ok(Estimate { rows, sampled, tokens: of_all(tokens), files: of_all(files) })
}

/// Rows that cannot be read cost nothing: their jobs fail.
async fn load(connection: &mut sqlx::PgConnection, plan: &Plan, keys: &[SourceKey]) -> sqlx::Result<Vec<LoadedRow>> {
    let asked: Vec<&SourceKey> = keys.iter().collect();
    match db::app::load(connection, plan, &asked).await {
        Ok(rows) => Ok(rows.into_iter().flatten().collect()),
        Err(error) if db::is_passing(&error) => Err(error),
        Err(_) => {
            let mut readable = Vec::new();
            for key in asked {
                match db::app::load(connection, plan, &[key]).await {
                    Ok(rows) => readable.extend(rows.into_iter().flatten()),
                    Err(error) if db::is_passing(&error) => return Err(error),
                    Err(_) => {}
                }
            }
            Ok(readable)
        }
    }
}

/// The model's own tokenizer; a local model that is not fetched yet is counted with a common one, since it costs nothing.
fn counting(config: &Config, plan: &Plan) -> Tokenizer {
    let folder = match config.providers.get(&plan.model.provider).map(|provider| &provider.kind) {
        Some(ProviderKind::Local { folder, .. }) => folder.clone().or_else(|| embedded::cached(Artifact::MiniLm)),
        Some(ProviderKind::OpenAi { .. } | ProviderKind::ElevenLabs { .. } | ProviderKind::Hash) | None => None,
    };
    tokenizer(&plan.model, folder).unwrap_or_else(|_| Tokenizer::cl100k())
}
