use rust_decimal::Decimal;

use crate::config::{ChunkFact, JobFact, Name, Template};
use crate::db::app::{ColumnWrite, LoadedRow, Plan, WriteKind};
use crate::domain::{Chunk, ClaimedJob, Embedding};

/// What a job's end can say of itself in the application's columns.
#[derive(Debug, Clone, Default)]
pub struct JobFacts {
    pub state: &'static str,
    pub error: Option<String>,
    pub cause: Option<String>,
    /// Tokens paid for.
    pub tokens: Option<u64>,
    /// Tokens of the whole text.
    pub tokens_of_text: Option<u64>,
    pub chunks: Option<usize>,
    pub pages: Option<usize>,
    pub words: Option<usize>,
    pub characters: Option<usize>,
    pub text: Option<String>,
    /// Of a transcript only, as are its language and segments.
    pub seconds: Option<Decimal>,
    pub language: Option<String>,
    pub language_probability: Option<f64>,
    /// JSON: what was said when.
    pub segments: Option<String>,
    pub cost: Option<Decimal>,
    pub ms: u64,
    /// The transaction's time and the attempt's start, as the database writes them.
    pub now: String,
    pub started: Option<String>,
    /// Of a job that ended before this transaction.
    pub finished: Option<String>,
    pub attempts: i16,
}

/// Everything a template of the configuration may name, for one job.
pub(super) struct Names<'a> {
    pub plan: &'a Plan,
    pub job: &'a ClaimedJob,
    pub row: Option<&'a LoadedRow>,
    pub facts: &'a JobFacts,
}

impl Names<'_> {
    /// A name's value, as text.
    pub fn value(&self, name: &Name, chunk: Option<&Chunk>) -> Option<String> {
        match name {
            Name::Row(_) | Name::Tenant => self.row.and_then(|row| row.value(name)),
            Name::Job(fact) => self.fact(*fact),
            Name::Chunk(fact) => chunk.and_then(|chunk| chunk_fact(chunk, *fact)),
        }
    }

    fn fact(&self, fact: JobFact) -> Option<String> {
        let facts = self.facts;
        let finished = !matches!(facts.state, "processing" | "pending");
        match fact {
            JobFact::Id => Some(self.job.id.to_string()),
            JobFact::Revision => Some(self.job.revision.0.to_string()),
            JobFact::Tokens => facts.tokens.map(|tokens| tokens.to_string()),
            JobFact::TokensOfText => facts.tokens_of_text.map(|tokens| tokens.to_string()),
            JobFact::Attempts => Some(facts.attempts.to_string()),
            JobFact::Chunks => facts.chunks.map(|chunks| chunks.to_string()),
            JobFact::Pages => facts.pages.map(|pages| pages.to_string()),
            JobFact::Words => facts.words.map(|words| words.to_string()),
            JobFact::Characters => facts.characters.map(|characters| characters.to_string()),
            JobFact::Ms => Some(facts.ms.to_string()),
            JobFact::Cost => facts.cost.map(|cost| cost.normalize().to_string()),
            JobFact::Pipeline => Some(self.plan.pipeline.name.clone()),
            JobFact::Model => Some(self.plan.model.name.clone()),
            JobFact::Provider => Some(self.plan.provider.clone()),
            JobFact::Text => facts.text.clone(),
            JobFact::Error => facts.error.clone(),
            JobFact::State => Some(facts.state.to_owned()),
            JobFact::Cause => facts.cause.clone(),
            JobFact::Started => facts.started.clone(),
            JobFact::Finished => finished.then(|| facts.finished.as_ref().unwrap_or(&facts.now).clone()),
            JobFact::Now => Some(facts.now.clone()),
            JobFact::Key => serde_json::to_string(&self.job.key).ok(),
            JobFact::Seconds => facts.seconds.map(|seconds| seconds.normalize().to_string()),
            JobFact::Segments => facts.segments.clone(),
            JobFact::Language => facts.language.clone(),
            JobFact::LanguageProbability => facts.language_probability.map(|probability| probability.to_string()),
        }
    }

    /// A template as a column's value: null where all its names are null.
    pub fn render(&self, template: &Template, chunk: Option<&Chunk>) -> Option<String> {
        if let Some(name) = template.single() {
            return self.value(name, chunk);
        }
        let names = template.names();
        if !names.is_empty() && names.iter().all(|name| self.value(name, chunk).is_none()) {
            return None;
        }
        Some(template.render(|name| self.value(name, chunk)))
    }

    /// The value of a chunk's column, as text; none for its vector, and where the embedding is not new, for its weights of tokens.
    pub fn chunk_column(&self, write: &ColumnWrite, chunk: &Chunk, embedding: Option<&Embedding>) -> Option<String> {
        match write.kind {
            WriteKind::Sparse(kind) => embedding?.sparse.as_ref().map(|sparse| kind.text(sparse)),
            _ => self.column(write, Some(chunk)),
        }
    }

    /// The value of a column, as text; none for what an embedding says.
    pub fn column(&self, write: &ColumnWrite, chunk: Option<&Chunk>) -> Option<String> {
        match &write.kind {
            WriteKind::Vector | WriteKind::Sparse(_) => None,
            WriteKind::Plain(template) => self.render(template, chunk).map(|text| short(write, template, text)),
            WriteKind::Merge(keys) => {
                let object: serde_json::Map<String, serde_json::Value> =
                    keys.iter().map(|(key, template)| (key.clone(), self.json(template, chunk))).collect();
                Some(serde_json::Value::Object(object).to_string())
            }
        }
    }

    /// A template as JSON: a single name that is a number stays one.
    fn json(&self, template: &Template, chunk: Option<&Chunk>) -> serde_json::Value {
        let Some(text) = self.render(template, chunk) else { return serde_json::Value::Null };
        let plain = match template.single() {
            Some(Name::Row(name)) => {
                self.plan.source_table.column(name).is_some_and(crate::db::app::Column::is_plain_json)
            }
            Some(Name::Chunk(fact)) => !matches!(fact, ChunkFact::Text | ChunkFact::Section),
            Some(Name::Job(fact)) => matches!(
                fact,
                JobFact::Id
                    | JobFact::Revision
                    | JobFact::Tokens
                    | JobFact::TokensOfText
                    | JobFact::Attempts
                    | JobFact::Chunks
                    | JobFact::Pages
                    | JobFact::Words
                    | JobFact::Characters
                    | JobFact::Ms
                    | JobFact::Cost
                    | JobFact::Seconds
                    | JobFact::LanguageProbability
                    | JobFact::Segments
                    | JobFact::Key
            ),
            Some(Name::Tenant) | None => false,
        };
        let parsed = if plain { serde_json::from_str(&text).ok() } else { None };
        parsed.unwrap_or(serde_json::Value::String(text))
    }
}

/// What went wrong, cut to what its column holds: the whole would have the database refuse that anything went wrong at all.
fn short(write: &ColumnWrite, template: &Template, text: String) -> String {
    let tells = |name: &&Name| matches!(name, Name::Job(JobFact::Error | JobFact::Cause));
    match write.column.longest() {
        Some(most) if template.names().iter().any(tells) => text.chars().take(most).collect(),
        _ => text,
    }
}

fn chunk_fact(chunk: &Chunk, fact: ChunkFact) -> Option<String> {
    match fact {
        ChunkFact::Index => Some(chunk.index.to_string()),
        ChunkFact::Tokens => Some(chunk.tokens.to_string()),
        ChunkFact::Page => chunk.page.map(|page| page.to_string()),
        ChunkFact::Level => chunk.level.map(|level| level.to_string()),
        ChunkFact::Start => Some(chunk.start.to_string()),
        ChunkFact::End => Some(chunk.end.to_string()),
        ChunkFact::Text => Some(chunk.text.clone()),
        ChunkFact::Section => chunk.section.clone(),
        // Bound as a vector, never as text.
        ChunkFact::Vector | ChunkFact::Sparse => None,
    }
}
