//! Floor 7: one file per command; arguments, output, exit codes (0 ok, 1 failed, 2 usage, 3 unfinished).

mod accept;
mod ask;
mod backfill;
mod bench;
mod check;
mod cost;
mod demo;
mod effects;
mod enqueue;
mod failure;
mod fetch;
mod forget;
mod grants;
mod health;
mod index;
mod init;
mod interruptions;
mod jobs;
mod migrate;
mod pause;
mod reconcile;
mod run;
mod search;
mod session;
mod show;
mod status;
mod triggers;
mod usage;
mod verify;
mod views;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::LogFormat;

use failure::Failure;
use session::Session;

/// Keeps vectors up to date beside the rows they come from, in any Postgres with pgvector.
#[derive(Debug, Parser)]
#[command(
    name = "gristmill",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Start with `gristmill demo`. Results go to standard output, logs to standard error.\n\
                  With --json a failure is the last line of standard error: {\"error\": {\"kind\", \"message\", \"hint\"}}.\n\
                  Exit codes: 0 ok, 1 failed, 2 the command line or the configuration is wrong,\n\
                  3 a run --once left work that waits.\n\
                  GRISTMILL_LOG (or RUST_LOG) filters the log: GRISTMILL_LOG=debug"
)]
struct Cli {
    /// The configuration; default: ./workers.toml, else the one built in
    #[arg(long, global = true, env = "GRISTMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the result as one JSON document, for programs
    #[arg(long, global = true)]
    json: bool,
    /// How log lines look; default: pretty on a terminal, and for all commands but `run`
    #[arg(long, global = true, value_enum, env = "GRISTMILL_LOG_FORMAT", value_name = "FORMAT")]
    log: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show everything at work: a private Postgres, sample documents, a worker, a search
    Demo(demo::Args),
    /// Fetch what the demo, the tests and the local model need, ahead of time
    Fetch(fetch::Args),
    /// Read a database and propose a configuration for its tables
    Init(init::Args),
    /// Create or update schema gristmill
    Migrate(migrate::Args),
    /// Hold the configuration against this machine and the database
    Check(check::Args),
    /// The SQL that gives a role the rights it needs, and no more
    Grants(grants::Args),
    /// Triggers that announce changes at once (without them, sweeps find changes)
    Triggers(triggers::Args),
    /// Views of job states for frontends: each user sees those of the rows that he may see
    Views(views::Args),
    /// Allow what would be paid for: rows that were there before, or a new generation of vectors
    Accept(accept::Args),
    /// Open rows that nobody has worked on, behind what is new, and see what they would cost first
    Backfill(backfill::Args),
    /// Work: claim jobs, embed, write
    Run(run::Args),
    /// Pipelines with their backlog, and the workers that are alive
    Status(status::Args),
    /// List, show, retry or cancel jobs
    Jobs(jobs::Args),
    /// Announce rows by hand
    Enqueue(enqueue::Args),
    /// Wait until a row's job is through
    Wait(wait::Args),
    /// Run an effect of the configuration again, unpaid, for the rows whose jobs are done
    Effects(effects::Args),
    /// Look for rows whose vectors are missing, stale, invalid or orphaned
    Verify(verify::Args),
    /// What was used and what it cost, from the ledger
    Usage(usage::Args),
    /// The vector index: whether a back-fill should go without it, and how it is built beside readers and writers
    Index(index::Args),
    /// Pause a pipeline: nothing more of it is claimed, by any worker
    Pause(pause::PauseArgs),
    /// Let a paused pipeline go on
    Resume(pause::ResumeArgs),
    /// Forget a tenant, or rows, that are gone
    Forget(forget::Args),
    /// Find the chunks nearest to a text
    Search(search::Args),
    /// Measure how fast it is, beside floors measured in the same run
    Bench(bench::Args),
    /// Ask a running worker whether it is well, for a container's health check
    Health(health::Args),
}

/// Parses the command line and runs its command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and the version are no mistakes, and people are told in colour.
        Err(error) if !error.use_stderr() || !wants_json() => error.exit(),
        Err(error) => return Failure::of_command_line(&error).report(true),
    };
    let json = cli.json;
    crate::telemetry::init_logs(cli.log.unwrap_or_else(|| cli.command.log_format()), cli.command.log_filter());
    crate::net::init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Failed(format!("the runtime cannot start: {error}")).report(json),
    };
    let session = Session { config: cli.config, json };
    let outcome = runtime.block_on(cli.command.run(&session));
    // What still blocks a thread must not keep a command that is through.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// Whether a command line that cannot be read asks for JSON.
fn wants_json() -> bool {
    std::env::args_os().take_while(|argument| argument != "--").any(|argument| {
        // One that is given a value is refused, in JSON.
        argument.to_str().is_some_and(|argument| argument == "--json" || argument.starts_with("--json="))
    })
}

impl Command {
    /// A worker's log is read by machines unless somebody watches.
    fn log_format(&self) -> LogFormat {
        let watched = std::io::IsTerminal::is_terminal(&std::io::stderr());
        if matches!(self, Self::Run(_)) && !watched { LogFormat::Json } else { LogFormat::Pretty }
    }

    fn log_filter(&self) -> &'static str {
        match self {
            // What is wrong with a connection is told by whoever needed it.
            Self::Run(_) => "info,sqlx=error",
            // Its own lines say what happens.
            Self::Demo(_) => "error,gristmill::worker::attempt=off",
            // A lane that ends with it has nothing to say to others, and its failure is what the command says.
            Self::Search(_) => "warn,sqlx=error,gristmill::batch=error",
            _ => "warn,sqlx=error",
        }
    }

    async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Demo(args) => demo::run(session, args).await,
            Self::Fetch(args) => fetch::run(session, &args).await,
            Self::Init(args) => init::run(session, &args).await,
            Self::Migrate(args) => migrate::run(session, &args).await,
            Self::Check(args) => check::run(session, &args).await,
            Self::Grants(args) => grants::run(session, &args).await,
            Self::Triggers(args) => triggers::run(session, args).await,
            Self::Views(args) => views::run(session, args).await,
            Self::Accept(args) => accept::run(session, &args).await,
            Self::Backfill(args) => backfill::run(session, &args).await,
            Self::Run(args) => run::run(session, &args).await,
            Self::Status(args) => status::run(session, &args).await,
            Self::Jobs(args) => jobs::run(session, args).await,
            Self::Enqueue(args) => enqueue::run(session, &args).await,
            Self::Wait(args) => wait::run(session, &args).await,
            Self::Effects(args) => effects::run(session, &args).await,
            Self::Verify(args) => verify::run(session, &args).await,
            Self::Usage(args) => usage::run(session, &args).await,
            Self::Index(args) => index::run(session, &args).await,
            Self::Pause(args) => pause::pause(session, &args).await,
            Self::Resume(args) => pause::resume(session, &args).await,
            Self::Forget(args) => forget::run(session, &args).await,
            Self::Search(args) => search::run(session, &args).await,
            Self::Bench(args) => bench::run(session, args).await,
            Self::Health(args) => health::run(session, &args).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_says_what_everything_is() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let told = argument.get_help().is_some();
                assert!(told, "{} {} has no help", command.get_name(), argument.get_id());
            }
            for below in command.get_subcommands() {
                assert!(below.get_about().is_some(), "{} has no help", below.get_name());
                check(below);
            }
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }
}
