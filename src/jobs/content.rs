//! From a loaded row to its document: the text of its columns, or its file.

use crate::config::{FileRule, Name, Template, TextRule};
use crate::db::app::LoadedRow;
use crate::domain::{Document, SourceKey};
use crate::extract::Input;
use crate::files::{FileBytes, FileError, StorePath};

use super::{Deps, JobError, MEMORY_UNIT};

/// A document and the memory it is weighed with until the attempt ends.
pub(super) struct Content {
    pub document: Document,
    pub weight: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// What the row says, read and parsed.
pub(super) async fn read(deps: &Deps, key: &SourceKey, row: &LoadedRow) -> Result<Content, JobError> {
    if let Some(file) = deps.plan.pipeline.file.as_ref().filter(|_| row.is_file) {
        return read_file(deps, key, file, row).await;
    }
    let text = match &deps.plan.pipeline.source.text {
        None => String::new(),
        Some(rule) => text_of(rule, row),
    };
    let weight = weigh(deps, u64::try_from(text.len()).unwrap_or(u64::MAX)).await;
    // Postgres keeps no NUL; a text that came from a column has none, a template could still be given one.
    let text = if text.contains('\0') { text.replace('\0', "") } else { text };
    Ok(Content { document: Document::plain(text), weight })
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

async fn read_file(deps: &Deps, _key: &SourceKey, rule: &FileRule, row: &LoadedRow) -> Result<Content, JobError> {
    let path = path_of(rule, row)?;
    // Weighed with the most it may be until it is known.
    let most = deps.files.largest(&rule.store);
    let weight = weigh(deps, most).await;
    let file = match deps.files.read(&rule.store, &path).await {
        Err(FileError::Missing) if rule.wait_for_missing => return Err(JobError::FileAwaited),
        other => other?,
    };
    let weight = lighten(weight, file.size);
    let input = input_of(rule, row, file);
    let document = deps.extractor.extract(input).await?;
    Ok(Content { document, weight })
}

/// The row's path, checked against its owner.
fn path_of(rule: &FileRule, row: &LoadedRow) -> Result<StorePath, JobError> {
    let render = |template: &Template| template.render(|name| row.value(name));
    let names_are_known = |template: &Template| {
        template.names().into_iter().all(|name| row.value(name).is_some_and(|value| !value.is_empty()))
    };
    if !names_are_known(&rule.path) {
        return Err(FileError::BadPath("a column it is made of is empty".to_owned()).into());
    }
    let within = match &rule.within {
        Some(within) if !names_are_known(within) => {
            return Err(FileError::BadPath("its row has no owner".to_owned()).into());
        }
        Some(within) => Some(render(within)),
        None => None,
    };
    StorePath::checked(&render(&rule.path), within.as_deref())
        .map_err(|error| FileError::BadPath(error.to_string()).into())
}

fn input_of(rule: &FileRule, row: &LoadedRow, file: FileBytes) -> Input {
    let said = |template: &Option<Template>| {
        template.as_ref().map(|template| template.render(|name| row.value(name))).filter(|text| !text.is_empty())
    };
    Input { media_type: said(&rule.media_type).or(file.media_type), name: said(&rule.name), bytes: file.bytes }
}

/// Waits until that many bytes may be in flight. More than there is altogether waits for all of it.
async fn weigh(deps: &Deps, bytes: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
    let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).clamp(1, deps.memory_units);
    // The semaphore is closed by nobody; without a permit the work is merely not weighed.
    std::sync::Arc::clone(&deps.memory).acquire_many_owned(units).await.ok()
}

fn lighten(weight: Option<tokio::sync::OwnedSemaphorePermit>, bytes: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
    let mut weight = weight?;
    let units = usize::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(usize::MAX).max(1);
    let spare = weight.num_permits().saturating_sub(units);
    drop(weight.split(spare));
    Some(weight)
}
