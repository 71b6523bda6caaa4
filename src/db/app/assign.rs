//! Column maps of the configuration, resolved against a table.

use std::collections::BTreeMap;

use crate::config::{Assignment, Candidate, ChunkFact, Name, Place, Template, Value};
use crate::domain::VOCABULARY;

use super::catalog::{Column, Table};
use super::check::Misfit;
use super::vector::SparseKind;

/// A column that is written, and with what.
#[derive(Debug, Clone)]
pub struct ColumnWrite {
    pub column: Column,
    pub kind: WriteKind,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq)]
pub enum WriteKind {
    /// Rendered to text and cast to the column's type; null where all its names are.
    Plain(Template),
    /// The chunk's vector.
    Vector,
    /// The weights of its tokens.
    Sparse(SparseKind),
    /// Keys merged into a jsonb object.
    Merge(BTreeMap<String, Template>),
}

impl ColumnWrite {
    /// The names it uses.
    pub fn names(&self) -> Vec<&Name> {
        match &self.kind {
            WriteKind::Plain(template) => template.names().into_iter().collect(),
            WriteKind::Vector | WriteKind::Sparse(_) => Vec::new(),
            WriteKind::Merge(keys) => keys.values().flat_map(Template::names).collect(),
        }
    }

    pub fn uses_chunk(&self, fact: ChunkFact) -> bool {
        matches!(&self.kind, WriteKind::Plain(template) if template.single() == Some(&Name::Chunk(fact)))
    }
}

/// Resolves a map: the first candidate that exists is taken, an optional one may be missing, fall-backs go into a jsonb column.
pub(super) fn resolve(table: &Table, assignments: &[Assignment], misfits: &mut Vec<Misfit>) -> Vec<ColumnWrite> {
    let mut writes: Vec<ColumnWrite> = Vec::new();
    for assignment in assignments {
        let Some((column, json_key)) = choose(table, assignment, misfits) else { continue };
        if column.generated {
            misfits.push(Misfit::new(
                &assignment.place,
                format!("column {} of {} is generated and cannot be written", column.name, table.name),
            ));
            continue;
        }
        let kind = match (&assignment.value, json_key) {
            (Value::Template(template), Some(key)) => {
                WriteKind::Merge(BTreeMap::from([(key.to_owned(), template.clone())]))
            }
            (Value::Template(template), None) if template.single() == Some(&Name::Chunk(ChunkFact::Vector)) => {
                WriteKind::Vector
            }
            (Value::Template(template), None) if template.single() == Some(&Name::Chunk(ChunkFact::Sparse)) => {
                let Some(kind) = sparse_kind(table, column, assignment, misfits) else { continue };
                WriteKind::Sparse(kind)
            }
            (Value::Template(template), None) => WriteKind::Plain(template.clone()),
            (Value::Merge(keys), _) => WriteKind::Merge(keys.clone()),
        };
        if matches!(kind, WriteKind::Merge(_)) && !column.is_jsonb() {
            misfits.push(Misfit::new(
                &assignment.place,
                format!(
                    "column {} of {} is {}, and keys merge only into jsonb",
                    column.name, table.name, column.type_name
                ),
            ));
            continue;
        }
        add(&mut writes, ColumnWrite { column: column.clone(), kind, place: assignment.place.clone() }, table, misfits);
    }
    writes
}

fn sparse_kind(
    table: &Table,
    column: &Column,
    assignment: &Assignment,
    misfits: &mut Vec<Misfit>,
) -> Option<SparseKind> {
    let dimensions = usize::try_from(column.modifier).ok();
    let wrong = match (column.type_name.as_str(), dimensions) {
        _ if column.is_jsonb() => return Some(SparseKind::Object),
        ("sparsevec", Some(few)) if few < VOCABULARY => {
            format!("sparsevec({few}), and the model has {VOCABULARY} tokens: make it sparsevec({VOCABULARY})")
        }
        ("sparsevec", dimensions) => {
            return Some(SparseKind::SparseVector { dimensions: dimensions.unwrap_or(VOCABULARY) });
        }
        (other, _) => format!("{other}; weights of tokens go into sparsevec or jsonb"),
    };
    let message = format!("column {} of {} is {wrong}", column.name, table.name);
    misfits.push(Misfit::new(&assignment.place, message));
    None
}

fn choose<'a>(
    table: &'a Table,
    assignment: &'a Assignment,
    misfits: &mut Vec<Misfit>,
) -> Option<(&'a Column, Option<&'a str>)> {
    let found =
        assignment.column.candidates.iter().find_map(|Candidate { column, json_key }| {
            table.column(column).map(|column| (column, json_key.as_deref()))
        });
    if found.is_none() && !assignment.column.optional {
        let asked: Vec<&str> = assignment.column.candidates.iter().map(|candidate| candidate.column.as_str()).collect();
        misfits.push(Misfit::new(
            &assignment.place,
            format!("table {} has no column {}; it has {}", table.name, asked.join(" or "), table.column_names()),
        ));
    }
    found
}

/// Two merges into one column become one; anything else twice is a mistake.
fn add(writes: &mut Vec<ColumnWrite>, write: ColumnWrite, table: &Table, misfits: &mut Vec<Misfit>) {
    let Some(known) = writes.iter_mut().find(|known| known.column.name == write.column.name) else {
        return writes.push(write);
    };
    match (&mut known.kind, write.kind) {
        (WriteKind::Merge(keys), WriteKind::Merge(more)) => keys.extend(more),
        _ => misfits.push(Misfit::new(
            &write.place,
            format!("column {} of {} is written twice", write.column.name, table.name),
        )),
    }
}
