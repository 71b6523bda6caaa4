//! `[pipelines.x.queue]`: the application's own job table.

use super::identifier;
use super::raw::{Item, Section};
use super::targets::{assignments, words};
use super::template::Name;
use super::values::{Scope, column_choice, table_name, template_of_row, text};
use super::{Queue, TableName};

pub(super) fn queue(mut section: Section) -> Option<Queue> {
    let place = section.place();
    let table = section.need("table", optional_table, "\"public.embedding_jobs\"");
    let mut key = Vec::new();
    for (column, item) in section.entries("key") {
        let read = item.read(|item| Ok((identifier::whole(&column)?, template_of_row(item)?)));
        let Some((column, template)) = read else { continue };
        match template.single() {
            Some(Name::Row(name)) => key.push((column, name.clone())),
            _ => item.misfit("must be one column of the source row, like \"{id}\""),
        }
    }
    if key.is_empty() {
        let message =
            "is missing: it says which source row is asked for; write for example key = { document_id = \"{id}\" }";
        section.misfit_at("key", message);
    }
    let priority = section.optional("priority", column_choice);
    let not_before = section.optional("not_before", column_choice);
    let status = status(&mut section);
    let columns = assignments(&mut section, "columns", Scope::Job);
    section.finish();
    let (table, optional) = table?;
    let (column, words) = status?;
    Some(Queue { place, table, optional, key, priority, not_before, status: column, words, columns })
}

/// `public.queue?` may be missing.
fn optional_table(item: &Item) -> Result<(TableName, bool), String> {
    let written = text(item)?;
    let name = written.trim();
    let (name, optional) = name.strip_suffix('?').map_or((name, false), |name| (name, true));
    table_name(name).map(|table| (table, optional)).map_err(|message| format!("\"{written}\" {message}"))
}

fn status(section: &mut Section) -> Option<(super::ColumnChoice, super::StatusWords)> {
    if !section.has("status") {
        let message = "is missing: a row asks while its status says so; write for example \
                       status = { column = \"status\", words = { skipped = \"completed\" } }";
        section.misfit_at("status", message);
    }
    let mut part = section.section("status")?;
    let column = part.need("column", column_choice, "\"status\"");
    let words = words(part.section_or_empty("words"));
    if words.skipped.is_none() {
        part.misfit_at("words", "needs a word for skipped: a row that still says it waits would ask for ever");
    }
    part.finish();
    Some((column?, words))
}
