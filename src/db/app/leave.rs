//! What a source row says of itself once its vectors are gone.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::{JobFact, Name, Template};
use crate::domain::SourceKey;

use super::assign::WriteKind;
use super::plan::Plan;
use super::{asked, by_column, literal};

/// Takes back what rows say of vectors they no longer have: counts of chunks become 0, and where a `word` is given, a status word of
/// ours becomes that one. A word of the application's own stays. Rows that are as they should be are not written.
///
/// # Errors
/// A constraint refuses a row, or the database is away.
pub async fn take_back(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
    word: Option<&str>,
) -> sqlx::Result<()> {
    let mut sets = zeroed(plan);
    let column = plan.status.as_ref().and_then(|status| status.column.as_ref());
    if let (Some(column), Some(rule), Some(word)) = (column, &plan.pipeline.status, word) {
        let ours: Vec<String> = rule.words.all().into_iter().map(literal).collect();
        let (name, type_sql, ours, word) = (column.sql(), column.type_sql(), ours.join(", "), literal(word));
        sets.push((
            name.clone(),
            format!("case when source.{name}::text in ({ours}) then {word}::{type_sql} else source.{name} end"),
        ));
    }
    if sets.is_empty() || keys.is_empty() {
        return Ok(());
    }
    let differs: Vec<String> =
        sets.iter().map(|(name, value)| format!("source.{name}::text is distinct from ({value})::text")).collect();
    let statement = format!(
        "update {table} as source set {sets} from {asked} where {key_match} and ({differs})",
        table = plan.source,
        sets = sets.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", "),
        asked = asked(plan.key.len()),
        key_match = plan.key_match("source"),
        differs = differs.join(" or "),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for array in by_column(keys, plan.key.len()) {
        query = query.bind(array);
    }
    query.execute(connection).await?;
    Ok(())
}

/// Columns of the row that count its chunks, and their value for none.
fn zeroed(plan: &Plan) -> Vec<(String, String)> {
    let counts = |template: &Template| template.single() == Some(&Name::Job(JobFact::Chunks));
    let status = plan.status.iter().flat_map(|status| &status.columns);
    let writes = plan.write.iter().chain(status).filter_map(|write| {
        let column = write.column.sql();
        let value = match &write.kind {
            WriteKind::Plain(template) => counts(template).then(|| format!("'0'::{}", write.column.type_sql())),
            WriteKind::Merge(keys) => {
                let zeros: Vec<String> = keys
                    .iter()
                    .filter(|(_, template)| counts(template))
                    .map(|(key, _)| format!("{}, 0", literal(key)))
                    .collect();
                (!zeros.is_empty()).then(|| {
                    format!(
                        "case when jsonb_typeof(source.{column}) = 'object' \
                             then source.{column} || jsonb_build_object({}) else source.{column} end",
                        zeros.join(", ")
                    )
                })
            }
            WriteKind::Vector | WriteKind::Sparse(_) => None,
        };
        value.map(|value| (column, value))
    });
    writes.collect()
}
