//! `gristmill grants`

use clap::ValueEnum;

use crate::app;
use crate::db;
use crate::db::app::grants;

use super::failure::Failure;
use super::session::Session;

#[derive(Debug, clap::Args)]
#[command(after_help = "Run it as somebody who sees everything; whoever owns the tables runs what it prints.\n\n\
                        Example: gristmill grants --role gristmill_worker | psql \"$OWNER_URL\"")]
pub(super) struct Args {
    /// What the role is for
    #[arg(long = "for", value_enum, default_value = "worker")]
    purpose: Purpose,
    /// The role; default: named after what it is for
    #[arg(long)]
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
    /// Runs `gristmill migrate`
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
        return print(session, &grants::of_migrator(&mut connection, &role).await?);
    }
    let pool = app::connect(&config).await?;
    let statements = match args.purpose {
        Purpose::Reader => grants::of_reader(&role),
        Purpose::Owner => grants::of_owner(&role),
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
            let mut statements = grants::of_worker(&role);
            for plan in &resolved.plans {
                for statement in grants::of_pipeline(&mut connection, plan, &role).await? {
                    if !statements.contains(&statement) {
                        statements.push(statement);
                    }
                }
            }
            statements
        }
    };
    print(session, &statements)
}

fn print(session: &Session, statements: &[String]) -> Result<(), Failure> {
    session.print(statements, |statements| statements.iter().map(|one| format!("{one};\n")).collect())
}
