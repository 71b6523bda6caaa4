//! `workers.toml`: raw TOML in, checked limits, addresses and rules out. What does not hold is named with file and line.
//!
//! [`Config::read`] is the only way in. `raw` knows TOML and places, `values` turns one item into one value, and `check` reads
//! the sections with the modules named after them. `template`, `columns` and `identifier` are the small languages inside strings,
//! `environment` fills in `${X}`, and `unsupported` lists what a later version brings. Nothing here asks a database: what
//! depends on one is checked by `db::catalog`.

mod ceiling;
mod check;
mod columns;
mod effects;
mod environment;
mod error;
mod generation;
mod identifier;
mod limits;
mod models;
mod pipelines;
mod queue;
mod raw;
mod settings;
mod shape;
mod signal;
mod speech;
mod statement;
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
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use url::Url;

pub use columns::{Candidate, ColumnChoice};
pub use error::{ConfigError, Place};
pub use identifier::written;
pub use shape::{
    Assignment, ChunkSize, Chunking, Effect, Existing, FileRule, Limit, Longer, Occasion, OnLeave, Pipeline,
    PipelineKind, Queue, Shared, Signal, Skip, Source, Status, StatusWords, Target, TenantRule, TextRule, Value,
    Webhook,
};
pub use statement::{Numbered, Statement};
pub use template::{ChunkFact, JobFact, Name, Piece, Template};
pub use units::{duration, moment, size, suggestion};

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
    pub limits: BTreeMap<String, Limit>,
    pub pipelines: Vec<Pipeline>,
}

/// A value that must not show in logs, errors or `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T = String>(T);

impl<T: std::ops::Deref> Secret<T> {
    pub fn new(value: impl Into<T>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &T::Target {
        &self.0
    }
}

impl Secret {
    /// What tells secrets apart and may be stored: a prefix of a digest.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(&self.0).iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }
}

impl<T> std::fmt::Debug for Secret<T> {
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
    /// How long a request that is not full waits for texts of jobs that are on their way.
    pub linger: Duration,
    /// Bytes of files, texts and vectors in flight.
    pub memory: u64,
    /// Where `/healthz`, `/readyz` and `/metrics` listen; none: not at all.
    pub listen: Option<SocketAddr>,
    /// How long `job_attempts` and `provider_calls` details are kept.
    pub keep_history: Duration,
    /// Entries of `vector_cache` older than this go.
    pub keep_cache: Duration,
    /// Most bytes of its vectors for equal texts; beyond, the oldest go.
    pub largest_cache: u64,
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
    /// The longest one request may take; none: what its kind of work is given.
    pub timeout: Option<Duration>,
    pub allowance: Allowance,
    /// Credentials of their own, by tenant.
    pub keys: BTreeMap<String, Secret>,
    /// Whether texts of several tenants may share a request, where they share a credential.
    pub pack_across_tenants: bool,
}

/// What a provider allows one credential in a minute, to all workers together; none: no limit is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    pub requests: Option<u32>,
    pub tokens: Option<u32>,
}

#[derive(Debug, Clone)]
pub enum ProviderKind {
    /// OpenAI's API of embeddings and transcriptions, and what speaks it. `url` ends before `/embeddings`.
    OpenAi { url: Url, key: Option<Secret> },
    /// Transcribes. `url` ends before `/v1`.
    ElevenLabs { url: Url, key: Secret },
    /// Inside this process, on candle. `folder` holds the model's files; none: MiniLM as
    /// `gristmill fetch` brings it.
    Local { folder: Option<PathBuf>, threads: usize },
    /// Lexical: hashed words, no meaning, no network. For tests and applications' own CI.
    Hash,
}

impl Provider {
    /// The same provider, asked with another key.
    #[must_use]
    pub fn with_key(&self, other: &Secret) -> Self {
        let mut provider = self.clone();
        match &mut provider.kind {
            ProviderKind::OpenAi { key, .. } => *key = Some(other.clone()),
            ProviderKind::ElevenLabs { key, .. } => *key = other.clone(),
            ProviderKind::Local { .. } | ProviderKind::Hash => {}
        }
        provider
    }
}

impl ProviderKind {
    /// The credential of all tenants that have none of their own.
    pub fn key(&self) -> Option<&Secret> {
        match self {
            Self::OpenAi { key, .. } => key.as_ref(),
            Self::ElevenLabs { key, .. } => Some(key),
            Self::Local { .. } | Self::Hash => None,
        }
    }

    /// Whether it works in this process, unpaid.
    pub fn runs_here(&self) -> bool {
        match self {
            Self::Local { .. } | Self::Hash => true,
            Self::OpenAi { .. } | Self::ElevenLabs { .. } => false,
        }
    }
}

/// `[models.x]`
#[derive(Debug, Clone)]
pub struct Model {
    /// What `workers.toml` calls it.
    pub label: String,
    pub provider: String,
    /// What the provider calls it.
    pub name: String,
    /// How it transcribes; none: it makes vectors. What follows is about vectors, and means nothing for a model that transcribes.
    pub speech: Option<Speech>,
    pub dimensions: usize,
    /// Whether it gives weights of tokens beside each vector, as BGE-M3 does.
    pub sparse: bool,
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

/// How a model transcribes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speech {
    /// The language that is spoken, in the provider's own code; none: the provider finds out.
    pub language: Option<String>,
    /// The provider's own options, sent as they are; a list is sent as a field for each of its values.
    pub options: BTreeMap<String, Vec<String>>,
    /// What sounds for longer fails, unpaid.
    pub longest_recording: Duration,
    /// The longest recording of one request, and the largest in bytes. A longer one is cut into parts.
    pub longest_part: Duration,
    pub largest_part: u64,
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

/// `[pipelines.x.ceiling]`: the most money of a day and of a month (UTC), of the whole pipeline and of each of its tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ceiling {
    pub usd_per_day: Option<Decimal>,
    pub usd_per_month: Option<Decimal>,
    pub tenant_usd_per_day: Option<Decimal>,
    pub tenant_usd_per_month: Option<Decimal>,
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

    /// One of what is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tokens => "token",
            Self::ReusedVectors => "vector",
            Self::AudioMinutes => "minute",
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
    /// The name as the file would write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", written(&self.schema), written(&self.table))
    }
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
