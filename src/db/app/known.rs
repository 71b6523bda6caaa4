//! What columns must hold after a commit, as SQL over the source row and its job, as far as these can tell.

use crate::config::{ChunkFact, JobFact, Name, Piece, Template};

use super::assign::{ColumnWrite, WriteKind};
use super::effects;
use super::literal;
use super::plan::{Plan, TargetPlan};

/// Numbers whose JSON reads the same whoever wrote it.
const WHOLE: [&str; 4] = ["int2", "int4", "int8", "bool"];
/// Types whose modifier changes no value that fits.
const TEXTS: [&str; 2] = ["varchar", "bpchar"];

/// A condition: a column of `row` holds something else than the commit wrote. None where row and job cannot tell.
pub(super) fn differs(plan: &Plan, write: &ColumnWrite, row: &str) -> Option<String> {
    let differs = is_other(plan, write, row)?;
    let of_text = Name::Job(JobFact::TokensOfText);
    // Jobs that were done before it was kept do not know.
    let known = if write.names().contains(&&of_text) { "gm_tokens_of_text is not null and " } else { "" };
    Some(format!("({known}{differs})"))
}

fn is_other(plan: &Plan, write: &ColumnWrite, row: &str) -> Option<String> {
    let column = &write.column;
    let held = format!("{row}.{}", column.sql());
    match &write.kind {
        WriteKind::Vector | WriteKind::Sparse(_) => None,
        // A number may be written with decimals.
        WriteKind::Plain(template) if is_count(template) && column.is_plain_json() => {
            let value = column_value(plan, template)?;
            Some(format!("{held} is distinct from (({value})::text)::{}", column.type_sql()))
        }
        WriteKind::Plain(_) if column.modifier >= 0 && !TEXTS.contains(&column.type_name.as_str()) => None,
        WriteKind::Plain(template) => {
            let value = column_value(plan, template)?;
            Some(format!("{held}::text is distinct from (({value})::text::{})::text", column.type_sql()))
        }
        WriteKind::Merge(keys) => {
            let differ: Vec<String> = keys
                .iter()
                .filter_map(|(key, template)| {
                    Some(format!("{held} -> {} is distinct from {}", literal(key), json_value(plan, template)?))
                })
                .collect();
            // Into anything but an object nothing is merged.
            (!differ.is_empty()).then(|| {
                let differ = differ.join(" or ");
                format!("(coalesce(jsonb_typeof({held}), 'null') in ('object', 'null') and ({differ}))")
            })
        }
    }
}

fn is_count(template: &Template) -> bool {
    matches!(template.single(), Some(Name::Job(JobFact::Chunks | JobFact::Pages | JobFact::TokensOfText)))
}

/// What was embedded of a chunk, as text; none where the stored columns do not say.
pub(super) fn dressed(plan: &Plan) -> Option<String> {
    let text = stored(plan, ChunkFact::Text)?;
    let dressed = match &plan.pipeline.chunks.embed {
        None => text,
        Some(template) => rendered(template, |name| match name {
            // Whose row it is may change without its content.
            Name::Tenant | Name::Job(_) => None,
            Name::Row(name) => row_value(plan, name),
            Name::Chunk(fact) => stored(plan, *fact),
        })?,
    };
    Some(format!("{} || {dressed}", literal(&plan.model.prefix)))
}

/// The column of a chunk table that holds a fact as it is.
fn stored(plan: &Plan, fact: ChunkFact) -> Option<String> {
    let TargetPlan::Chunks { columns, .. } = &plan.target else { return None };
    columns.iter().find(|write| write.uses_chunk(fact)).map(|write| format!("chunk.{}::text", write.column.sql()))
}

fn value(plan: &Plan, name: &Name) -> Option<String> {
    match name {
        Name::Row(name) => row_value(plan, name),
        Name::Tenant => Some(plan.tenant.clone()),
        Name::Job(fact) => fact_value(plan, *fact),
        Name::Chunk(ChunkFact::Index) => match &plan.target {
            TargetPlan::Chunks { .. } => stored(plan, ChunkFact::Index),
            TargetPlan::Row { .. } => Some("'0'::text".to_owned()),
            TargetPlan::None => None,
        },
        Name::Chunk(_) => None,
    }
}

/// None for a column that we write ourselves: it said something else before.
fn row_value(plan: &Plan, name: &str) -> Option<String> {
    let beside = match &plan.target {
        TargetPlan::Row { columns, .. } => columns.as_slice(),
        TargetPlan::Chunks { .. } | TargetPlan::None => &[],
    };
    let status = plan.status.as_ref();
    let with_status = status.map_or(&[][..], |status| &status.columns);
    let written = plan.write.iter().chain(with_status).chain(beside).map(|write| &write.column);
    let ours = written.chain(status.and_then(|status| status.column.as_ref())).any(|column| column.name == name);
    (!ours).then(|| effects::expression(plan, name))
}

/// The job's columns have odd names, so that a configured expression over the row never meets them.
fn fact_value(plan: &Plan, fact: JobFact) -> Option<String> {
    let word = |word: &str| Some(format!("{}::text", literal(word)));
    match fact {
        JobFact::Id => Some("gm_job::text".to_owned()),
        JobFact::Chunks => Some("gm_wanted::text".to_owned()),
        JobFact::TokensOfText => Some("gm_tokens_of_text::text".to_owned()),
        JobFact::Pages => Some("gm_pages::text".to_owned()),
        JobFact::Pipeline => word(&plan.pipeline.name),
        JobFact::Model => word(&plan.model.name),
        JobFact::Provider => word(&plan.provider),
        // Known to the attempt alone, or never the same again.
        JobFact::Revision
        | JobFact::Tokens
        | JobFact::Attempts
        | JobFact::Words
        | JobFact::Characters
        | JobFact::Ms
        | JobFact::Cost
        | JobFact::Seconds
        | JobFact::Segments
        | JobFact::Language
        | JobFact::LanguageProbability
        | JobFact::Text
        | JobFact::Error
        | JobFact::State
        | JobFact::Cause
        | JobFact::Started
        | JobFact::Finished
        | JobFact::Now
        | JobFact::Key => None,
    }
}

/// A template as a column's value: null where all its names are null.
fn column_value(plan: &Plan, template: &Template) -> Option<String> {
    if let Some(name) = template.single() {
        return value(plan, name);
    }
    let text = rendered(template, |name| value(plan, name))?;
    let names: Option<Vec<String>> = template.names().into_iter().map(|name| value(plan, name)).collect();
    let names = names.filter(|names| !names.is_empty());
    Some(names.map_or_else(|| text.clone(), |names| format!("case when {} then {text} end", any_known(&names))))
}

/// A template as a key's value in JSON, without what is null.
fn json_value(plan: &Plan, template: &Template) -> Option<String> {
    let text = column_value(plan, template)?;
    let is_number = match template.single() {
        Some(Name::Row(name)) => {
            let column = plan.source_table.column(name).filter(|column| column.is_plain_json());
            // Fractions are rounded on their way.
            if column.is_some_and(|column| !WHOLE.contains(&column.type_name.as_str())) {
                return None;
            }
            column.is_some() && !plan.pipeline.source.values.contains_key(name)
        }
        Some(
            Name::Job(JobFact::Id | JobFact::Chunks | JobFact::Pages | JobFact::TokensOfText)
            | Name::Chunk(ChunkFact::Index),
        ) => true,
        Some(Name::Job(_) | Name::Chunk(_) | Name::Tenant) | None => false,
    };
    Some(if is_number { format!("({text})::jsonb") } else { format!("to_jsonb({text})") })
}

fn any_known(names: &[String]) -> String {
    format!("num_nonnulls({}) > 0", names.join(", "))
}

#[derive(Default)]
struct Line {
    parts: Vec<String>,
    names: Vec<String>,
}

/// [`Template::render`] in SQL: a line that holds names and whose values are all null is left out.
fn rendered(template: &Template, value: impl Fn(&Name) -> Option<String>) -> Option<String> {
    let mut lines = vec![Line::default()];
    for piece in &template.0 {
        match piece {
            Piece::Text(text) => {
                for (nth, part) in text.split('\n').enumerate() {
                    if nth > 0 {
                        lines.push(Line::default());
                    }
                    lines.last_mut()?.parts.push(literal(part));
                }
            }
            Piece::Name(name) => {
                let value = value(name)?;
                let line = lines.last_mut()?;
                line.parts.push(format!("coalesce({value}, '')"));
                line.names.push(value);
            }
        }
    }
    let lines = lines.into_iter().map(|Line { parts, names }| {
        let text = if parts.is_empty() { "''".to_owned() } else { format!("concat({})", parts.join(", ")) };
        if names.is_empty() { text } else { format!("case when {} then {text} end", any_known(&names)) }
    });
    Some(format!("concat_ws(chr(10), {})", lines.collect::<Vec<_>>().join(", ")))
}
