//! From a loaded row to its document: the text of its columns, or its file.

use tokio::sync::OwnedSemaphorePermit;

use crate::config::{FileRule, Name, Piece, Template, TextRule};
use crate::db::app::LoadedRow;
use crate::domain::Document;
use crate::extract::Input;
use crate::files::{BadPath, FileBytes, FileError, StorePath, StorePattern};

use super::{Deps, JobError, MEMORY_UNIT};

/// A document and the memory it is weighed with until the attempt ends.
pub(super) struct Content {
    pub document: Document,
    pub _weight: Option<OwnedSemaphorePermit>,
}

/// What the row says, read and parsed.
pub(super) async fn read(deps: &Deps, row: &LoadedRow) -> Result<Content, JobError> {
    if let Some(file) = deps.plan.pipeline.file.as_ref().filter(|_| row.is_file) {
        return read_file(deps, file, row).await;
    }
    let text = match &deps.plan.pipeline.source.text {
        None => String::new(),
        Some(rule) => text_of(rule, row),
    };
    let weight = weigh(deps, u64::try_from(text.len()).unwrap_or(u64::MAX)).await;
    // Postgres keeps no NUL; a text that came from a column has none, a template could still be given one.
    let text = if text.contains('\0') { text.replace('\0', "") } else { text };
    Ok(Content { document: Document::plain(text), _weight: weight })
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

async fn read_file(deps: &Deps, rule: &FileRule, row: &LoadedRow) -> Result<Content, JobError> {
    let (file, weight) = fetch(deps, rule, row).await?;
    let input = input_of(rule, row, file);
    let document = deps.extractor.extract(input).await?;
    Ok(Content { document, _weight: weight })
}

/// The row's file, and what it is weighed with.
pub(super) async fn fetch(
    deps: &Deps,
    rule: &FileRule,
    row: &LoadedRow,
) -> Result<(FileBytes, Option<OwnedSemaphorePermit>), JobError> {
    let asked = asked_of(rule, row)?;
    // Weighed with the most it may be until it is known.
    let most = deps.files.largest(&rule.store);
    let weight = weigh(deps, most).await;
    let file = match find(deps, rule, &asked).await {
        Err(FileError::Missing(_)) if rule.wait_for_missing => return Err(JobError::FileAwaited),
        other => other?,
    };
    let weight = lighten(weight, file.size);
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

/// Waits until that many bytes may be in flight. More than there is altogether waits for all of it.
async fn weigh(deps: &Deps, bytes: u64) -> Option<OwnedSemaphorePermit> {
    let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).clamp(1, deps.memory_units);
    // The semaphore is closed by nobody; without a permit the work is merely not weighed.
    std::sync::Arc::clone(&deps.memory).acquire_many_owned(units).await.ok()
}

fn lighten(weight: Option<OwnedSemaphorePermit>, bytes: u64) -> Option<OwnedSemaphorePermit> {
    let mut weight = weight?;
    let units = usize::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(usize::MAX).max(1);
    let spare = weight.num_permits().saturating_sub(units);
    drop(weight.split(spare));
    Some(weight)
}
