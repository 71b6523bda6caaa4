//! From a loaded row to its document: the text of its columns, or its file.

use crate::batch::Weight;
use crate::config::{FileRule, Name, Piece, Template, TextRule};
use crate::db::app::{LoadedRow, Plan};
use crate::domain::Document;
use crate::extract::Input;
use crate::failpoint::{self, Point};
use crate::files::{BadPath, FileBytes, FileError, StorePath, StorePattern};

use super::{Deps, JobError};

/// What the row says, read and parsed, and what it is weighed with from here on.
pub(super) async fn read(deps: &Deps, row: &LoadedRow, weight: Weight) -> Result<(Document, Weight), JobError> {
    if let Some(file) = deps.plan.pipeline.file.as_ref().filter(|_| row.is_file) {
        // Who waits for memory holds none.
        drop(weight);
        return read_file(deps, file, row).await;
    }
    Ok((of_columns(&deps.plan, row), weight))
}

/// The document of a row whose content is in its columns.
pub(super) fn of_columns(plan: &Plan, row: &LoadedRow) -> Document {
    let text = match &plan.pipeline.source.text {
        None => String::new(),
        Some(rule) => text_of(rule, row),
    };
    // Postgres keeps no NUL; a text that came from a column has none, a template could still be given one.
    Document::plain(if text.contains('\0') { text.replace('\0', "") } else { text })
}

fn text_of(rule: &TextRule, row: &LoadedRow) -> String {
    let template = match rule {
        TextRule::One(template) => Some(template),
        TextRule::By { column, variants, otherwise } => {
            let kind = row.value(&Name::Row(column.clone())).unwrap_or_default();
            variants.get(&kind).or(otherwise.as_ref())
        }
    };
    template.map(|template| template.render(|name| row.value(name))).unwrap_or_default()
}

async fn read_file(deps: &Deps, rule: &FileRule, row: &LoadedRow) -> Result<(Document, Weight), JobError> {
    // What it is known to weigh; until then, the most it may.
    let mut known = 0;
    loop {
        let (file, mut weight) = fetch(deps, rule, row, known.max(deps.files.largest(&rule.store))).await?;
        failpoint::reach(Point::Fetched);
        // What it will be as a text is guessed until that is known. Where that is more than there is now, it is fetched again when
        // there is room: who waits for memory holds none.
        known = known.max(deps.memory.weight_of_text(&deps.plan, file.size));
        if !deps.memory.fit(&mut weight, known) {
            continue;
        }
        let document = {
            let _child = deps.parsers.acquire(&row.tenant, file.size).await;
            deps.extractor.extract(input_of(rule, row, file)).await?
        };
        let text = u64::try_from(document.text.len()).unwrap_or(u64::MAX);
        let text = deps.memory.weight_of_text(&deps.plan, text);
        if deps.memory.fit(&mut weight, text) {
            return Ok((document, weight));
        }
        known = known.max(text);
    }
}

/// The row's file, when there is room for so many bytes.
pub(super) async fn fetch(
    deps: &Deps,
    rule: &FileRule,
    row: &LoadedRow,
    bytes: u64,
) -> Result<(FileBytes, Weight), JobError> {
    let asked = asked_of(rule, row)?;
    let weight = deps.memory.take(&row.tenant, bytes).await;
    let file = match find(deps, rule, &asked).await {
        Err(FileError::Missing(_)) if rule.wait_for_missing => return Err(JobError::FileAwaited),
        other => other?,
    };
    Ok((file, weight))
}

/// What a row asks for, and what it must lie below.
struct Asked {
    path: String,
    within: Option<String>,
}

/// The row's path and its owner's folder; a row that leaves a part of either empty asks for nothing.
fn asked_of(rule: &FileRule, row: &LoadedRow) -> Result<Asked, JobError> {
    let render = |template: &Template| template.render(|name| row.value(name));
    let known = |template: &Template| {
        template.names().into_iter().all(|name| row.value(name).is_some_and(|value| !value.is_empty()))
    };
    if !known(&rule.path) {
        return Err(FileError::BadPath(BadPath::Empty).into());
    }
    if rule.within.as_ref().is_some_and(|within| !known(within)) {
        return Err(FileError::BadPath(BadPath::NoOwner).into());
    }
    Ok(Asked { path: render(&rule.path), within: rule.within.as_ref().map(render) })
}

/// By path, by the pattern of the configuration, or by address: the store and the rule decide.
async fn find(deps: &Deps, rule: &FileRule, asked: &Asked) -> Result<FileBytes, FileError> {
    let within = asked.within.as_deref();
    if deps.files.takes_addresses(&rule.store) {
        return deps.files.fetch(&rule.store, &asked.path, within).await;
    }
    let star = rule.path.0.iter().any(|piece| matches!(piece, Piece::Text(text) if text.contains('*')));
    let path = if star {
        deps.files.find(&rule.store, &StorePattern::checked(&asked.path, within)?).await?
    } else {
        StorePath::checked(&asked.path, within)?
    };
    deps.files.read(&rule.store, &path).await
}

fn input_of(rule: &FileRule, row: &LoadedRow, file: FileBytes) -> Input {
    let said = |template: &Option<Template>| {
        template.as_ref().map(|template| template.render(|name| row.value(name))).filter(|text| !text.is_empty())
    };
    Input { media_type: said(&rule.media_type).or(file.media_type), name: said(&rule.name), bytes: file.bytes }
}
