//! `gristmill bench`: how fast it is, as ratios to floors measured in the same run.

mod again;
mod end_to_end;
mod figure;
mod freshness;
mod ground;
mod large;
mod peers;
mod provider;
mod queue;
mod reading;
mod rig;
mod scaling;
mod texts;
mod worker;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use super::failure::Failure;
use super::interruptions::Interruptions;
use super::session::Session;
use super::show;

use figure::Figure;
use ground::Ground;
use provider::Knobs;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each figure is the median of several runs. A floor is the same work without Gristmill, measured in turn with it, so that the \
                        ratio holds on a busy machine too. Workers are child processes of this binary.\n\
                        Databases of its own are made on a private Postgres that writes through to the disk, or on the server that DATABASE_URL \
                        names, and dropped at the end.\n\
                        Examples:\n  gristmill bench --quick                a small round of all\n  \
                        gristmill bench end-to-end --rows 50000\n  gristmill bench latency --json"
)]
pub(super) struct Args {
    /// Which to run; default: all
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Bench>,
    /// A small round: fewer rows, one run of each
    #[arg(long)]
    quick: bool,
    /// Say what there is, and run nothing
    #[arg(long)]
    list: bool,
    /// Rows of a run; default: 20000, with --quick 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// Runs of each; default: 3, with --quick 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Jobs that the backlog bench piles up; default: 10000000, with --quick 100000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10_000..))]
    backlog: Option<u32>,
    /// A program that runs another system, for `peers`; may be given several times
    #[arg(long = "peer", value_name = "PROGRAM")]
    peers: Vec<PathBuf>,
    /// Jobs in hand at once of each worker (`worker.slots`)
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    #[command(flatten)]
    knobs: Knobs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Rows of 1.6 kB become vectors of 1536 dimensions: rows a second, processor time, memory
    EndToEnd,
    /// The same with a provider that takes 100 ms, two requests at once
    Latency,
    /// One insert after another: how long until its vector is there
    Freshness,
    /// Rows opened again, none or 1 % of them changed: what is paid for
    Again,
    /// Jobs without a text: claimed, skipped, finished
    NoOp,
    /// Claims from a backlog of millions, also while an old transaction is open
    Backlog,
    /// One tenant has a great many rows waiting, others insert one each; the same where the provider is the limit
    Fairness,
    /// 1, 2 and 4 workers at one provider, without and with its limit of requests
    Scaling,
    /// Prose into chunks, beside the tokenizer alone
    Chunking,
    /// PDF and DOCX files from end to end, beside reading them alone
    Documents,
    /// Other systems on a tenth of the rows, each a program named by --peer
    Peers,
    /// A text of 500 MB and a PDF of 3,000 pages: the memory of the worker and of its parser
    Large,
}

/// What every bench works with.
struct Bed {
    ground: Ground,
    quick: bool,
    rows: usize,
    rounds: usize,
    backlog: i64,
    slots: usize,
    peers: Vec<PathBuf>,
    knobs: Knobs,
    quiet: bool,
}

impl Bed {
    /// A line about progress, on standard error.
    fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    what: String,
}

pub(super) async fn run(session: &Session, args: Args) -> Result<(), Failure> {
    if args.list {
        return list(session);
    }
    if args.peers.is_empty() && args.names.contains(&Bench::Peers) {
        return Err(Failure::Usage("`peers` measures programs: name one with --peer PROGRAM".to_owned()));
    }
    let ground = Ground::obtain().await?;
    if !ground.durable {
        eprintln!(
            "warning: this server does not write through to its disk (fsync or synchronous_commit is off): figures flatter"
        );
    }
    let wide = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let bed = Bed {
        ground,
        quick: args.quick,
        rows: wide(args.rows.unwrap_or(if args.quick { 1_000 } else { 20_000 })),
        rounds: wide(args.rounds.unwrap_or(if args.quick { 1 } else { 3 })),
        backlog: i64::from(args.backlog.unwrap_or(if args.quick { 100_000 } else { 10_000_000 })),
        slots: wide(args.slots),
        peers: args.peers,
        knobs: args.knobs,
        quiet: session.json,
    };
    bed.say(&format!("Postgres {}, {} cores", bed.ground.version, std::thread::available_parallelism()?));
    let names = if args.names.is_empty() { Bench::value_variants().to_vec() } else { args.names };
    let mut interruptions = Interruptions::listen()?;
    let outcome = tokio::select! {
        outcome = all(&bed, &names) => outcome,
        () = interruptions.next() => Err(Failure::Failed("interrupted".to_owned())),
    };
    bed.ground.leave().await?;
    session.print(&outcome?, |figures| figure::table(figures))
}

async fn all(bed: &Bed, names: &[Bench]) -> Result<Vec<Figure>, Failure> {
    let mut figures = Vec::new();
    for name in names {
        bed.say(&format!("{}:", word(*name)));
        figures.extend(name.run(bed).await?);
    }
    Ok(figures)
}

impl Bench {
    async fn run(self, bed: &Bed) -> Result<Vec<Figure>, Failure> {
        match self {
            Self::EndToEnd => end_to_end::instant(bed).await,
            Self::Latency => end_to_end::slow(bed).await,
            Self::Freshness => freshness::run(bed).await,
            Self::Again => again::run(bed).await,
            Self::NoOp => queue::nothing_to_do(bed).await,
            Self::Backlog => queue::backlog(bed).await,
            Self::Fairness => queue::fairness(bed).await,
            Self::Scaling => scaling::run(bed).await,
            Self::Chunking => reading::chunking(bed),
            Self::Documents => reading::documents(bed).await,
            Self::Peers => peers::run(bed).await,
            Self::Large => large::run(bed).await,
        }
    }
}

fn word(bench: Bench) -> String {
    bench.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn list(session: &Session) -> Result<(), Failure> {
    let help = |bench: &Bench| bench.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
    let benches: Vec<Listed> = Bench::value_variants()
        .iter()
        .map(|bench| Listed { name: word(*bench), what: help(bench).unwrap_or_default() })
        .collect();
    session.print(&benches, |benches| {
        let rows = benches.iter().map(|bench| vec![bench.name.clone(), bench.what.clone()]).collect();
        show::table(&["bench", "what it measures"], &[], rows)
    })
}
