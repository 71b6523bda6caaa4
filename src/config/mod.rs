//! `workers.toml`: raw TOML in, checked limits, addresses and rules out. What does not hold is named with file and line.
//!
//! [`Config::read`] is the only way in. `raw` knows TOML and places, `values` turns one item into one value, and `check` reads
//! the sections with the modules named after them. `template` and `columns` are the two small languages inside strings,
//! `environment` fills in `${X}`, and `unsupported` lists what a later version brings. Nothing here asks a database: what
//! depends on one is checked by `db::catalog`.

mod check;
mod columns;
mod environment;
mod error;
mod generation;
mod models;
mod pipelines;
mod raw;
mod settings;
mod stores;
mod targets;
mod template;
mod units;
mod unsupported;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rust_decimal::Decimal;
use time::OffsetDateTime;
use url::Url;

pub use columns::{Candidate, ColumnChoice};
pub use error::{ConfigError, Place};
pub use template::{ChunkFact, JobFact, Name, Piece, Template};
pub use units::{duration, moment};

/// The embedded defaults: the repository's own `workers.toml`, which documents every key.
pub const DEFAULT: &str = include_str!("../../workers.toml");

/// A checked `workers.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    /// What to call the file in messages.
    pub file: String,
    pub database: Database,
    pub worker: Worker,
    pub parser: Parser,
    pub stores: BTreeMap<String, Store>,
    pub providers: BTreeMap<String, Provider>,
    pub models: BTreeMap<String, Model>,
    pub prices: Vec<Price>,
    pub pipelines: Vec<Pipeline>,
}

/// A value that must not show in logs, errors or `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    pub url: Secret,
    /// Most connections this process opens.
    pub connections: u32,
}

/// `[worker]`
#[derive(Debug, Clone)]
pub struct Worker {
    /// Jobs in hand at once.
    pub slots: usize,
    /// How long a claim is good for without a heartbeat.
    pub lease: Duration,
    /// How often to look for work when nothing is announced.
    pub poll: Duration,
    /// How often a pass over the sources begins.
    pub sweep: Duration,
    /// Rows a pass looks at in one statement.
    pub sweep_rows: i64,
    /// How long jobs in hand may go on after SIGTERM.
    pub grace: Duration,
    /// The longest an attempt may take.
    pub deadline: Duration,
    /// The pause after the first failed attempt; doubles with each.
    pub retry_first: Duration,
    pub retry_longest: Duration,
    /// How long a job may be snoozed altogether before it fails.
    pub snooze_total: Duration,
    /// How long the batcher waits for more texts before it sends a request that is not full.
    pub linger: Duration,
    /// Bytes of files, texts and vectors in flight.
    pub memory: u64,
    /// Where `/healthz`, `/readyz` and `/metrics` listen; none: not at all.
    pub listen: Option<SocketAddr>,
    /// How long `job_attempts` and `provider_calls` details are kept.
    pub keep_history: Duration,
    /// Entries of `vector_cache` older than this go.
    pub keep_cache: Duration,
}

/// `[parser]`: what one child process may use for one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Parser {
    /// Children at once.
    pub processes: usize,
    pub memory: u64,
    pub cpu: Duration,
    pub time: Duration,
    /// Largest text a file may become, in bytes.
    pub largest_text: u64,
    pub pages: u32,
    pub pdf: PdfReader,
    pub docx: DocxReader,
    /// Path of libpdfium; none: the cached download, then the system's.
    pub pdfium: Option<PathBuf>,
    /// Folders of fonts the child may read.
    pub fonts: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PdfReader {
    /// pdfium, and unpdf where it is missing or fails.
    Pdfium,
    Unpdf,
    /// Needs the cargo feature `pdf-extract`.
    PdfExtract,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DocxReader {
    OfficeOxide,
    /// Needs the cargo feature `docx-rs`.
    DocxRs,
}

/// `[stores.x]`
#[derive(Debug, Clone)]
pub struct Store {
    pub kind: StoreKind,
    /// Files above this are refused while they stream.
    pub largest: u64,
}

#[derive(Debug, Clone)]
pub enum StoreKind {
    /// A folder on this machine.
    Local { root: PathBuf },
    S3 {
        bucket: String,
        region: String,
        endpoint: Option<Url>,
        key_id: Option<Secret>,
        secret: Option<Secret>,
        path_style: bool,
    },
    /// Supabase Storage by REST. Of several buckets the first that exists is taken.
    Supabase { url: Url, key: Secret, buckets: Vec<String> },
    /// Needs the cargo feature `gcs`. `credentials` is a service account's JSON.
    Gcs { bucket: String, credentials: Option<Secret> },
    /// Needs the cargo feature `azure`.
    Azure { account: String, container: String, key: Option<Secret> },
    /// Addresses that come from rows, through the guarded client. `hosts` are exact names or `*.example.org`.
    Url { hosts: Vec<String>, private: bool },
}

/// `[providers.x]`: an endpoint and its credential.
#[derive(Debug, Clone)]
pub struct Provider {
    pub name: String,
    pub kind: ProviderKind,
    /// Requests under way at once, from this process.
    pub concurrency: usize,
    /// The longest one request may take.
    pub timeout: Duration,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
}

#[derive(Debug, Clone)]
pub enum ProviderKind {
    /// OpenAI's embeddings API, and what speaks it. `url` ends before `/embeddings`.
    OpenAi { url: Url, key: Option<Secret> },
    /// Inside this process, on candle. `folder` holds `config.json`, `tokenizer.json` and `model.safetensors`; none: MiniLM as
    /// `gristmill fetch` brings it.
    Local { folder: Option<PathBuf>, threads: usize },
    /// Lexical: hashed words, no meaning, no network. For tests and applications' own CI.
    Hash,
}

/// `[models.x]`
#[derive(Debug, Clone)]
pub struct Model {
    /// What `workers.toml` calls it.
    pub label: String,
    pub provider: String,
    /// What the provider calls it.
    pub name: String,
    pub dimensions: usize,
    /// Most tokens of one text.
    pub longest: usize,
    /// Most inputs and tokens of one request.
    pub inputs: usize,
    pub tokens: usize,
    /// Put before what is embedded (`passage: ` and the like).
    pub prefix: String,
    /// Whether to send `dimensions` with each request.
    pub send_dimensions: bool,
    pub tokenizer: TokenizerKind,
}

/// Whose tokens a model counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// OpenAI's embedding models.
    Cl100k,
    O200k,
    /// The local model's own `tokenizer.json`.
    Model,
}

/// One entry of `[[prices]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub model: String,
    pub meter: Meter,
    /// For one unit of the meter.
    pub usd: Decimal,
    pub from: OffsetDateTime,
}

/// What is counted for money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    Tokens,
    ReusedVectors,
    AudioMinutes,
}

impl Meter {
    /// The word stored in `usage_events.meter` and `prices.meter`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::ReusedVectors => "reused_vectors",
            Self::AudioMinutes => "audio_minutes",
        }
    }
}

/// An SQL expression or statement of the configuration, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    pub text: String,
    pub place: Place,
}

/// `schema.table`, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// `[pipelines.x]`
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub name: String,
    pub place: Place,
    /// Labels of models; the first whose dimensions fit the target is taken.
    pub models: Vec<String>,
    pub existing: Option<Existing>,
    pub on_leave: OnLeave,
    pub max_attempts: i16,
    /// Left out, said once, where its tables do not fit.
    pub optional: bool,
    /// Whether announcing wakes idle workers by NOTIFY.
    pub notify: bool,
    pub source: Source,
    pub file: Option<FileRule>,
    pub skip: Skip,
    pub chunks: Chunking,
    pub target: Target,
    /// Columns of the source row set with the commit.
    pub write: Vec<Assignment>,
    pub status: Option<Status>,
}

/// What happens with rows that were there before the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// Rows whose every vector is valid are done, unpaid; the rest wait for `accept`.
    Adopt,
    /// All wait for `accept`.
    Backfill,
    /// A skipped job for each.
    Ignore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLeave {
    Delete,
    Keep,
}

/// `source`
#[derive(Debug, Clone)]
pub struct Source {
    pub table: TableName,
    pub place: Place,
    pub key: Vec<String>,
    pub tenant: Option<TenantRule>,
    /// The set; none: every row.
    pub when: Option<Sql>,
    /// The row asks itself.
    pub needs: Option<Sql>,
    /// Whether a change of content opens the job again.
    pub reopen_on_change: bool,
    /// A column that grows with every change, for the sweep.
    pub changed_at: Option<String>,
    /// Counted from the opening.
    pub grace: Duration,
    /// A column by which older rows go first.
    pub order: Option<String>,
    /// None only where a file gives the content.
    pub text: Option<TextRule>,
    /// Named SQL expressions over the row, whose alias is `source`.
    pub values: BTreeMap<String, Sql>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantRule {
    /// A column of the source row or one of its `values`.
    Name(String),
    /// The same for every row.
    Constant(String),
    /// An SQL expression over the row.
    Expression(Sql),
}

#[derive(Debug, Clone, PartialEq)]
pub enum TextRule {
    One(Template),
    /// A template per value of a column; `otherwise` where none is named.
    By {
        column: String,
        variants: BTreeMap<String, Template>,
        otherwise: Option<Template>,
    },
}

/// `file`
#[derive(Debug, Clone)]
pub struct FileRule {
    pub store: String,
    pub path: Template,
    /// What a path must lie below.
    pub within: Option<Template>,
    /// The row's content is a file only where this holds; none: always.
    pub when: Option<Sql>,
    /// A hint of the type: a media type or an extension. The bytes decide.
    pub media_type: Option<Template>,
    /// The name people know the file by.
    pub name: Option<Template>,
    /// The upload may come after the row.
    pub wait_for_missing: bool,
}

/// `skip`
#[derive(Debug, Clone, Default)]
pub struct Skip {
    /// In characters.
    pub shorter_than: usize,
    pub when: Option<Sql>,
}

/// `chunks`
#[derive(Debug, Clone, PartialEq)]
pub struct Chunking {
    pub size: ChunkSize,
    /// In the unit of `size`.
    pub overlap: usize,
    /// The text is one chunk, whatever its length.
    pub whole: bool,
    /// A text up to this many tokens is one chunk.
    pub whole_up_to: usize,
    /// What happens with a whole text that exceeds the model.
    pub longer: Longer,
    /// What is embedded, where it differs from what is stored; may name `{chunk.text}`, `{chunk.section}` and the row's values.
    pub embed: Option<Template>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkSize {
    Tokens(usize),
    Characters(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Longer {
    Fail,
    Cut,
    /// The mean of its parts' vectors, weighted by their tokens and normalised.
    Mean,
}

/// `target`
#[derive(Debug, Clone)]
pub struct Target {
    pub place: Place,
    /// None: the columns are the source row's own, and there is one chunk.
    pub table: Option<TableName>,
    /// Columns of the chunk table that say which source row a chunk is of, with their values.
    pub parent: Vec<Assignment>,
    /// A column that tells versions of vectors apart, with this pipeline's word.
    pub version: Option<(String, String)>,
    pub columns: Vec<Assignment>,
}

/// One entry of a column map: `column = "{value}"`, or a nested table that merges into a jsonb column.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub column: ColumnChoice,
    pub value: Value,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A template; one that is a single name keeps that name's type.
    Template(Template),
    /// Keys merged into a jsonb column.
    Merge(BTreeMap<String, Template>),
}

/// `status`: our words on the source row.
#[derive(Debug, Clone)]
pub struct Status {
    pub place: Place,
    pub column: ColumnChoice,
    pub words: StatusWords,
    /// Errors and times, set with the status.
    pub columns: Vec<Assignment>,
}

/// The application's words for our states. `skipped` must be said where the set can skip; none: not mirrored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusWords {
    pub pending: String,
    pub processing: String,
    pub completed: String,
    pub failed: String,
    pub skipped: Option<String>,
}

impl Config {
    /// Reads, fills in the environment, and checks. `file` names the text in messages.
    ///
    /// Besides `${X}` in strings, `environment` is asked for `GRISTMILL__SECTION__KEY` for the single-valued keys of `[database]`,
    /// `[worker]` and `[parser]`, which comes before the file.
    ///
    /// # Errors
    /// Everything that does not hold, in the order of the file; never a value that the environment brought.
    pub fn read(
        file: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<ConfigError>> {
        check::config(file, text, environment)
    }

    /// The pipeline of that name.
    pub fn pipeline(&self, name: &str) -> Option<&Pipeline> {
        self.pipelines.iter().find(|pipeline| pipeline.name == name)
    }
}
