//! `gristmill grants`

use clap::ValueEnum;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use sqlx::PgConnection;

use crate::app;
use crate::db;
use crate::db::app::grants::{self, By, Grant};

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Run it as somebody who sees everything. It prints a block for each role that has to run one, and says which: the owner of schema \
                        gristmill, the owners of the application's tables and schemas, and a superuser where row security is on. A block \
                        is one transaction: it is applied whole, or not at all. A superuser may run them all.\n\n\
                        Example: gristmill grants --role gristmill_worker | psql -v ON_ERROR_STOP=1 \"$SUPERUSER_URL\""
)]
pub(super) struct Args {
    /// What the role is for
    #[arg(long = "for", value_enum, default_value = "worker")]
    purpose: Purpose,
    /// The role; default: named after what it is for
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    role: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    /// Runs workers and commands, and owns nothing
    Worker,
    /// Looks at jobs, calls and usage
    Reader,
    /// Owns the application's tables and installs triggers and views on them
    Owner,
    /// Runs `gristmill migrate` and `gristmill forget`; again when a target was made
    Migrator,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config_for_database()?;
    let name = args.purpose.to_possible_value().map(|value| format!("gristmill_{}", value.get_name()));
    let role = args.role.clone().or(name).unwrap_or_default();
    if args.purpose == Purpose::Migrator {
        // The schema may not be there yet.
        let pool = db::connect(&config.database).await?;
        let mut connection = pool.acquire().await?;
        let mut statements = vec![grants::of_migrator(&mut connection, &role).await?];
        for pipeline in &config.pipelines {
            statements.extend(db::app::forget::grants(&mut connection, pipeline, &role).await?);
        }
        return print(session, &mut connection, &role, statements).await;
    }
    let pool = app::connect(&config).await?;
    let ours = By::Owner(grants::owner_of_schema(&mut *pool.acquire().await?, "gristmill").await?);
    let on_ours = |statements: Vec<String>| -> Vec<Grant> {
        statements.into_iter().map(|sql| Grant { by: ours.clone(), sql }).collect()
    };
    let statements = match args.purpose {
        Purpose::Reader => on_ours(grants::of_reader(&role)),
        Purpose::Owner => {
            let mut statements = on_ours(grants::of_owner(&role));
            // Of what does not fit, `triggers install` says why.
            let resolved = app::resolve_for(&pool, &config, db::app::Purpose::Announce).await?;
            let mut connection = pool.acquire().await?;
            for plan in &resolved.plans {
                statements.extend(grants::of_triggers(&mut connection, plan, &role).await?);
            }
            statements
        }
        Purpose::Worker | Purpose::Migrator => {
            let resolved = app::resolve(&pool, &config).await?;
            if !resolved.refused.is_empty() {
                let unfit: Vec<String> =
                    resolved.refused.iter().flat_map(|(_, misfits)| misfits).map(ToString::to_string).collect();
                return Err(Failure::Failed(format!(
                    "what a pipeline needs is known only where it fits:\n{}",
                    unfit.join("\n")
                )));
            }
            let mut connection = pool.acquire().await?;
            let mut statements = on_ours(grants::of_worker(&role));
            for plan in &resolved.plans {
                statements.extend(grants::of_pipeline(&mut connection, plan, &role).await?);
            }
            statements
        }
    };
    print(session, &mut *pool.acquire().await?, &role, statements).await
}

/// What one role runs, in one transaction.
#[derive(Debug, Serialize)]
struct Block {
    /// None: a superuser.
    run_by: Option<String>,
    statements: Vec<String>,
}

/// Each statement once, in its giver's block; a superuser's come last.
fn blocks(grants: Vec<Grant>) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for Grant { by, sql } in grants {
        let run_by = match by {
            By::Owner(role) => Some(role),
            By::Superuser => None,
        };
        match blocks.iter_mut().find(|block| block.run_by == run_by) {
            Some(block) if block.statements.contains(&sql) => {}
            Some(block) => block.statements.push(sql),
            None => blocks.push(Block { run_by, statements: vec![sql] }),
        }
    }
    blocks.sort_by_key(|block| block.run_by.is_none());
    blocks
}

async fn print(
    session: &Session,
    connection: &mut PgConnection,
    role: &str,
    grants: Vec<Grant>,
) -> Result<(), Failure> {
    let mut parts = Vec::new();
    if !grants::is_role(connection, role).await? {
        parts.push(format!("-- role {} does not exist yet\n", show::line(role, 200)));
    }
    session.print(&blocks(grants), |blocks| {
        parts.extend(blocks.iter().map(block));
        parts.join("\n")
    })
}

fn block(block: &Block) -> String {
    let who = block.run_by.as_ref().map_or_else(|| "a superuser".to_owned(), |role| format!("{role}, or a superuser"));
    let statements: String = block.statements.iter().map(|one| format!("{one};\n")).collect();
    // A role's name may hold what it likes, and a comment ends with its line.
    format!("-- To be run by {}\nbegin;\n{statements}commit;\n", show::line(&who, 200))
}
