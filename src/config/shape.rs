//! What a pipeline is made of, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::{Ceiling, ColumnChoice, Place, Secret, Sql, Statement, TableName, Template};

/// `[pipelines.x]`
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub name: String,
    pub kind: PipelineKind,
    pub place: Place,
    /// The columns and values of the source row that it names, each with the first place that does.
    pub names_used: BTreeMap<String, Place>,
    /// Labels of models; the first whose dimensions fit the target is taken, of models that transcribe the first.
    pub models: Vec<String>,
    pub existing: Option<Existing>,
    pub on_leave: OnLeave,
    pub max_attempts: i16,
    /// Left out, said once, where its tables do not fit.
    pub optional: bool,
    /// What a tenant may spend; none: no limit.
    pub limit: Option<String>,
    /// The most money that may be spent.
    pub ceiling: Option<Ceiling>,
    /// Whether announcing wakes idle workers by NOTIFY.
    pub notify: bool,
    /// Equal texts of one tenant and model are paid once.
    pub cache: bool,
    pub source: Source,
    pub file: Option<FileRule>,
    pub skip: Skip,
    pub chunks: Chunking,
    /// Nothing at all, for a pipeline that transcribes.
    pub target: Target,
    /// Columns of the source row set with the commit.
    pub write: Vec<Assignment>,
    pub status: Option<Status>,
    /// The application's own job table.
    pub queue: Option<Queue>,
    /// Statements of the configuration that run in the job's transaction, in this order.
    pub effects: Vec<Effect>,
    pub signal: Signal,
}

/// What a pipeline does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipelineKind {
    /// Texts and files become vectors in the target.
    Embed,
    /// Recordings become text, which `write` puts on the source row.
    Transcribe,
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

impl Pipeline {
    /// Where a column or value of the source row is first named.
    pub fn place_of(&self, name: &str) -> &Place {
        self.names_used.get(name).unwrap_or(&self.source.place)
    }
}

/// `source`
#[derive(Debug, Clone)]
pub struct Source {
    pub table: TableName,
    pub place: Place,
    pub key: Vec<String>,
    pub tenant: Option<TenantRule>,
    /// How many of a tenant's jobs are claimed for one of another's; 1 where nothing is said.
    pub weights: BTreeMap<String, u16>,
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

impl Default for Chunking {
    /// Of a pipeline that cuts nothing.
    fn default() -> Self {
        Self {
            size: ChunkSize::Tokens(400),
            overlap: 0,
            whole: false,
            whole_up_to: 0,
            longer: Longer::Fail,
            embed: None,
        }
    }
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
    /// Whether the table is ours to make where it is missing.
    pub create: bool,
    /// Who may read the rows of a table that we make: an SQL expression over it.
    pub policy: Option<Sql>,
    /// Columns of the chunk table that say which source row a chunk is of, with their values.
    pub parent: Vec<Assignment>,
    /// A column that tells versions of vectors apart, with this pipeline's word.
    pub version: Option<(String, String)>,
    pub columns: Vec<Assignment>,
}

impl Target {
    /// Of a pipeline that makes no vectors.
    pub fn none(place: Place) -> Self {
        Self { place, table: None, create: false, policy: None, parent: Vec::new(), version: None, columns: Vec::new() }
    }
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

/// The application's words for our states. `skipped` must be said where the set can skip; none: not mirrored. `cancelled` may be
/// said; none: the word for `pending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusWords {
    pub pending: String,
    pub processing: String,
    pub completed: String,
    pub failed: String,
    pub skipped: Option<String>,
    pub cancelled: Option<String>,
}

impl StatusWords {
    /// Every word that we may write.
    pub fn all(&self) -> Vec<&str> {
        let always = [&self.pending, &self.processing, &self.completed, &self.failed];
        always.into_iter().chain(&self.skipped).chain(&self.cancelled).map(String::as_str).collect()
    }
}

/// `effects`: an SQL statement inside the job's own transaction.
#[derive(Debug, Clone)]
pub struct Effect {
    pub name: String,
    pub place: Place,
    /// Alternatives for databases of different shapes; the first that fits is taken.
    pub sql: Vec<Statement>,
    /// The ends of a job that run it.
    pub on: Vec<Occasion>,
    /// A row that many jobs write: locked first, and written once for all of them.
    pub shared: Option<Shared>,
    /// Left out, said once, where no alternative fits.
    pub optional: bool,
    /// May be run again by itself, for rows whose jobs are done: it names nothing of a job that its row does not keep.
    pub repeatable: bool,
}

/// The ends of a job that an effect can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    Done,
    Skipped,
    /// The row is gone or out of the set.
    Left,
}

/// `shared = { table = "app.folders", key = { id = "{folder_id}" } }`
#[derive(Debug, Clone)]
pub struct Shared {
    pub place: Place,
    pub table: TableName,
    /// Columns of that table with a value of the source row, or a plain word, each.
    pub key: Vec<(String, Template)>,
}

/// `[limits.x]`: a query that says how much a tenant may still spend.
#[derive(Debug, Clone)]
pub struct Limit {
    pub name: String,
    pub place: Place,
    /// Alternatives for databases of different shapes; the first that fits is taken.
    pub sql: Vec<Statement>,
    /// A job over the limit fails; otherwise it waits until the limit resets.
    pub fails: bool,
}

/// `queue`: the application's own job table, whose rows ask for source rows while their status says so.
#[derive(Debug, Clone)]
pub struct Queue {
    pub place: Place,
    pub table: TableName,
    /// The table may be missing.
    pub optional: bool,
    /// Columns that name a source row, each with the source's column.
    pub key: Vec<(String, String)>,
    pub priority: Option<ColumnChoice>,
    /// A row asks from this time on.
    pub not_before: Option<ColumnChoice>,
    pub status: ColumnChoice,
    pub words: StatusWords,
    /// Attempts, errors and times, set with the status.
    pub columns: Vec<Assignment>,
}

/// `signal`: who is told when a job has ended.
#[derive(Debug, Clone, Default)]
pub struct Signal {
    /// A channel of NOTIFY.
    pub notify: Option<String>,
    pub webhook: Option<Webhook>,
}

/// `webhook = { url = "…", secret = "…" }`
#[derive(Debug, Clone)]
pub struct Webhook {
    pub url: Url,
    /// What its calls are signed with.
    pub key: Secret<Vec<u8>>,
}
