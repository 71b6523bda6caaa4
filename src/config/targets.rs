//! `target`, `write` and `status`: which columns are written, and that none is written twice.

use std::collections::{BTreeMap, BTreeSet};

use super::raw::{Item, Section};
use super::template::{ChunkFact, Name};
use super::values::{Scope, boolean, column_choice, sql, table, template, text, text_or_empty};
use super::{
    Assignment, ColumnChoice, Model, Pipeline, PipelineKind, Place, Source, Status, StatusWords, Target, Template,
    Value,
};

const VECTOR: Name = Name::Chunk(ChunkFact::Vector);
const SPARSE: Name = Name::Chunk(ChunkFact::Sparse);
const INDEX: Name = Name::Chunk(ChunkFact::Index);

/// The entries of a column map, each with its place.
pub(super) fn assignments(section: &mut Section, key: &'static str, scope: Scope) -> Vec<Assignment> {
    let entries = section.entries(key).into_iter();
    entries.filter_map(|(column, item)| assignment(&column, item, scope)).collect()
}

fn assignment(column: &str, item: Item, scope: Scope) -> Option<Assignment> {
    let place = item.place();
    let column = item.read(|_| ColumnChoice::parse(column))?;
    if !item.is_table() {
        let value = Value::Template(item.read(template(scope))?);
        return Some(Assignment { column, value, place });
    }
    if column.candidates.iter().any(|candidate| candidate.json_key.is_some()) {
        item.misfit("merges keys into a jsonb column; name the column without a key of its own");
    }
    let entries = item.into_entries()?.into_iter();
    let keys: BTreeMap<String, Template> =
        entries.filter_map(|(key, item)| Some((key, item.read(template(scope))?))).collect();
    Some(Assignment { column, value: Value::Merge(keys), place })
}

/// Reads `target`; a vector on the source row needs the text to be one chunk, which `whole` says.
pub(super) fn target(mut section: Section, whole: bool) -> Option<Target> {
    let place = section.place();
    let has_table = section.has("table");
    let table = section.read("table", table);
    let parent = assignments(&mut section, "parent", Scope::Row);
    let version = version(&mut section);
    let columns = assignments(&mut section, "columns", Scope::Chunk);
    let create = section.or("create", boolean, false);
    let policy = section.optional("policy", sql);
    if policy.is_some() && !create {
        section.misfit_at("policy", "is for a table that we make: set target.create = true, or leave it out");
    }
    if create && !has_table {
        section.misfit_at("create", "makes a table of chunks; name it in target.table");
    }
    let target = Target { place, table, create, policy, parent, version, columns };

    check_own_value(&section, &target, &VECTOR);
    check_own_value(&section, &target, &SPARSE);
    if has_table {
        check_own_value(&section, &target, &INDEX);
        check_parent(&section, &target);
    } else {
        check_column_of_row(&section, whole);
    }
    section.finish();
    // A table that was given but is no name must not turn into a column of the source row.
    (target.table.is_some() || !has_table).then_some(target)
}

/// `version = { column = "word" }`
fn version(section: &mut Section) -> Option<(String, String)> {
    let mut entries = section.entries("version");
    if entries.len() > 1 {
        section.misfit_at("version", "must be one column with one word, like { embedding_version = \"v1\" }");
    }
    let (column, item) = entries.pop()?;
    item.read(|item| {
        let word = text(item)?;
        let choice = ColumnChoice::parse(&column)?;
        if choice.optional || choice.candidates.len() > 1 || choice.candidates[0].json_key.is_some() {
            return Err("must be one column that is always there".to_owned());
        }
        if word.contains(['{', '}']) {
            Err("must be a plain word, the same for every row".to_owned())
        } else {
            Ok(())
        }?;
        Ok((choice.first().to_owned(), word))
    })
}

/// One column, always there, has to take the vector or the index, alone; one that may be missing may take the sparse vector.
fn check_own_value(section: &Section, target: &Target, wanted: &Name) {
    let uses = |template: &Template| template.names().contains(wanted);
    let mut found = false;
    for assignment in &target.columns {
        let (alone, named) = match &assignment.value {
            Value::Template(template) => (template.single() == Some(wanted), uses(template)),
            Value::Merge(keys) => (false, keys.values().any(uses)),
        };
        let whole = assignment.column.candidates.iter().all(|one| one.json_key.is_none());
        let always = whole && !assignment.column.optional;
        if alone && found && *wanted != INDEX {
            section.misfit(assignment.place.clone(), format!("takes {wanted} a second time; one column is enough"));
        } else if alone && !whole && *wanted == SPARSE {
            section.misfit(assignment.place.clone(), format!("takes {wanted}, so it must be a column, without `.`"));
        } else if alone && !always && !found && *wanted != SPARSE {
            let message = format!("takes {wanted}, so it must be a column that is always there, without `?` and `.`");
            section.misfit(assignment.place.clone(), message);
        } else if named && !alone && *wanted != INDEX {
            section.misfit(assignment.place.clone(), format!("mixes {wanted} with other text; give it its own column"));
        }
        found |= alone;
    }
    if !found && *wanted != SPARSE {
        let column = if *wanted == VECTOR { "embedding" } else { "chunk_index" };
        let message = format!("has no column for {wanted}; write for example {column} = \"{wanted}\"");
        section.misfit_at("columns", message);
    }
}

/// Only a model that gives weights of tokens has something to write into a column for them.
pub(super) fn check_sparse(section: &Section, target: &Target, models: &[&Model]) {
    let Some(assignment) = target.sparse() else { return };
    for model in models.iter().filter(|model| !model.sparse) {
        let message =
            format!("takes {SPARSE}, which model {} does not give; is it BGE-M3 (sparse = true)?", model.label);
        section.misfit(assignment.place.clone(), message);
    }
}

impl Target {
    /// What takes the weights of a chunk's tokens, if anything does.
    pub fn sparse(&self) -> Option<&Assignment> {
        self.columns.iter().find(
            |assignment| matches!(&assignment.value, Value::Template(template) if template.single() == Some(&SPARSE)),
        )
    }
}

fn check_parent(section: &Section, target: &Target) {
    if target.parent.is_empty() {
        let message =
            "is missing: it says which row a chunk is of; write for example parent = { document_id = \"{id}\" }";
        section.misfit_at("parent", message);
    }
    for assignment in &target.parent {
        let Value::Template(template) = &assignment.value else {
            section.misfit(assignment.place.clone(), "must be a value of the source row, not a table");
            continue;
        };
        if template.single().is_none() {
            section.misfit(assignment.place.clone(), "must be one value of the source row, like \"{id}\"");
        }
        if assignment.column.optional || assignment.column.candidates.iter().any(|one| one.json_key.is_some()) {
            let message = "says which row a chunk is of, so it must be a column that is always there";
            section.misfit(assignment.place.clone(), message);
        }
    }
}

fn check_column_of_row(section: &Section, whole: bool) {
    for key in ["parent", "version"] {
        if section.has(key) {
            let message = "is for a table of chunks; name it in target.table, or leave this out";
            section.misfit_at(key, message);
        }
    }
    if !whole {
        let message = "puts the vector on the source row, which has place for one; set chunks.whole = true, or name a \
                       table of chunks in target.table";
        section.misfit(section.place(), message);
    }
}

pub(super) fn status(mut section: Section) -> Option<Status> {
    let place = section.place();
    let column = section.need("column", column_choice, "\"status\"");
    let words = words(section.section_or_empty("words"));
    let columns = assignments(&mut section, "columns", Scope::Job);
    section.finish();
    Some(Status { place, column: column?, words, columns })
}

/// Our words where the file has no others. `skipped` has no word of its own in most applications, so it must be said.
pub(super) fn words(mut section: Section) -> StatusWords {
    if !section.has("skipped") {
        let message = "is missing: say which word a skipped row gets, or \"\" to leave its status as it is";
        section.misfit_at("skipped", message);
    }
    let words = StatusWords {
        pending: section.or("pending", text, "pending"),
        processing: section.or("processing", text, "processing"),
        completed: section.or("completed", text, "completed"),
        failed: section.or("failed", text, "failed"),
        skipped: section.read("skipped", text_or_empty).filter(|word| !word.is_empty()),
        cancelled: section.optional("cancelled", text),
    };
    section.finish();
    words
}

/// No column is set twice, and none of the key is set at all.
pub(super) fn check_distinct(
    section: &Section,
    source: &Source,
    target: &Target,
    write: &[Assignment],
    status: Option<&Status>,
) {
    let status_columns = status.map_or(&[][..], |status| &status.columns);
    let of_chunks: Vec<_> = target.parent.iter().chain(&target.columns).collect();
    let on_row: Vec<_> = write.iter().chain(status_columns).collect();

    let keys = source.key.iter().map(|key| (key.clone(), "is part of the source's key, which must not change"));
    let status = status.map(|status| (status.column.first().to_owned(), "is the status column, which is set already"));
    let taken: BTreeMap<_, _> = keys.chain(status).collect();
    let version =
        target.version.iter().map(|(column, _)| (column.clone(), "is the version column, which is set already"));

    if target.table.is_some() {
        check_once(section, &of_chunks, &version.collect());
        check_once(section, &on_row, &taken);
    } else {
        check_once(section, &[on_row, of_chunks].concat(), &taken);
    }
}

fn check_once(section: &Section, assignments: &[&Assignment], taken: &BTreeMap<String, &str>) {
    let mut seen: BTreeSet<(&str, Option<&str>)> = BTreeSet::new();
    for assignment in assignments {
        let first = &assignment.column.candidates[0];
        if let Some(reason) = taken.get(&first.column) {
            section.misfit(assignment.place.clone(), *reason);
        } else if !seen.insert((&first.column, first.json_key.as_deref())) {
            section.misfit(assignment.place.clone(), "is set twice; remove one");
        }
    }
}

/// What a pipeline owns in its target is said by parent and version; two pipelines must not own the same rows.
pub(super) fn check_owners(root: &Section, pipelines: &[Pipeline]) {
    let mut owners: BTreeMap<_, &str> = BTreeMap::new();
    for pipeline in pipelines.iter().filter(|pipeline| pipeline.kind == PipelineKind::Embed) {
        let (owned, place): (_, &Place) = (owned_by(pipeline), &pipeline.target.place);
        if let Some(other) = owners.get(&owned) {
            let message = format!("owns the same vectors as pipeline {other}; give each a target.version of its own");
            root.misfit(place.clone(), message);
        }
        owners.insert(owned, &pipeline.name);
    }
}

/// The table, the columns that say whose the vectors are, and the version.
fn owned_by(pipeline: &Pipeline) -> (String, BTreeSet<&str>, Option<&(String, String)>) {
    let target = &pipeline.target;
    if let Some(table) = &target.table {
        let parents = target.parent.iter().map(|parent| parent.column.first());
        return (table.to_string(), parents.collect(), target.version.as_ref());
    }
    let is_vector = |assignment: &&Assignment| matches!(&assignment.value, Value::Template(template) if template.single() == Some(&VECTOR));
    let vectors = target.columns.iter().filter(is_vector).map(|assignment| assignment.column.first());
    (pipeline.source.table.to_string(), vectors.collect(), None)
}
