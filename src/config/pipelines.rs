//! `[pipelines.x]`: its own keys, `source`, `file`, `skip` and `chunks`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ceiling::ceiling;
use super::check::Named;
use super::identifier;
use super::raw::{Item, Section};
use super::template::{ChunkFact, Name, Piece};
use super::values::{Scope, at_least, boolean, column, duration, list, one_of, sql, table, template, template_of_row};
use super::values::{text, text_or_empty, whole, word};
use super::{ChunkSize, Chunking, Existing, FileRule, Longer, Model, OnLeave, Pipeline, PipelineKind, Signal, Skip};
use super::{Source, Sql, Target, Template, TenantRule, TextRule, effects, queue, signal, targets};

/// Most tokens of a chunk where nobody says, and the model takes so many.
const TOKENS: usize = 400;
/// Triggers are named after their pipeline, and Postgres names have 63 bytes.
const LONGEST_NAME: usize = 40;

pub(super) fn pipeline(name: String, mut section: Section, named: &Named) -> Option<Pipeline> {
    let place = section.place();
    check_name(&name, &section);
    // Of a kind that is not known here the other keys are not known either.
    let kind = if section.has("kind") { section.read("kind", word(&KINDS))? } else { PipelineKind::Embed };
    let labels: BTreeSet<String> = named.models.keys().cloned().collect();
    let models = section.need("model", list(one_of(&labels, "models")), "\"small\"");
    let existing = section.optional("existing", word(&EXISTING));
    let on_leave = section.or("on_leave", word(&ON_LEAVE), OnLeave::Delete);
    let max_attempts = section.or("max_attempts", whole(1..=1_000), 5_i16);
    let optional = section.or("optional", boolean, false);
    let limit = section.optional("limit", one_of(&named.limits, "limits"));
    let notify = section.or("notify", boolean, true);
    let cache = section.or("cache", boolean, false);
    let ceiling = section.section("ceiling").map(ceiling);

    let has_file = section.has("file");
    let source = needed_section(&mut section, "source").and_then(|part| source(part, kind, has_file));
    let owner = source.as_ref().and_then(|source| source.tenant.clone());
    let file = section.section("file").map(|part| file(part, &named.stores, owner.as_ref()));
    let skip = skip(section.section_or_empty("skip"), kind);
    let used: Vec<&Model> = models.iter().flatten().filter_map(|label| named.models[label].as_ref()).collect();
    check_models(&section, kind, &used);
    if ceiling.is_some() {
        check_priced(&section, &used, named);
    }
    let chunks = match kind {
        PipelineKind::Embed => chunks(section.section_or_empty("chunks"), &used),
        PipelineKind::Transcribe => Chunking::default(),
    };
    let target = match kind {
        PipelineKind::Embed => {
            needed_section(&mut section, "target").and_then(|part| targets::target(part, chunks.whole))
        }
        PipelineKind::Transcribe => Some(Target::none(place.clone())),
    };
    if kind == PipelineKind::Transcribe {
        check_transcribing(&mut section, existing, cache);
    }
    let write = targets::assignments(&mut section, "write", Scope::Job);
    let status = section.section("status").map(targets::status);
    let queue = section.section("queue").map(queue::queue);
    let effects = effects::effects(&mut section);
    let signal = section.section("signal").map(signal::signal);
    if let (Some(source), Some(target)) = (&source, &target) {
        targets::check_sparse(&section, target, &used);
        targets::check_distinct(&section, source, target, &write, status.as_ref().and_then(Option::as_ref));
    }
    let names_used = section.names_used();
    section.finish();
    Some(Pipeline {
        name,
        kind,
        place,
        names_used,
        models: models?,
        existing,
        on_leave,
        max_attempts,
        optional,
        limit,
        ceiling,
        notify,
        cache,
        source: source?,
        // Given but not right: the misfit is recorded, and there is no pipeline.
        file: file.map_or(Some(None), |file| file.map(Some))?,
        skip,
        chunks,
        target: target?,
        write,
        status: status.map_or(Some(None), |status| status.map(Some))?,
        queue: queue.map_or(Some(None), |queue| queue.map(Some))?,
        effects,
        signal: signal.unwrap_or_else(|| Some(Signal::default()))?,
    })
}

const KINDS: [(&str, PipelineKind); 2] = [("embed", PipelineKind::Embed), ("transcribe", PipelineKind::Transcribe)];

const EXISTING: [(&str, Existing); 3] =
    [("adopt", Existing::Adopt), ("backfill", Existing::Backfill), ("ignore", Existing::Ignore)];

const ON_LEAVE: [(&str, OnLeave); 2] = [("delete", OnLeave::Delete), ("keep", OnLeave::Keep)];

fn check_name(name: &str, section: &Section) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        let message = format!("is not a name for a pipeline: up to {LONGEST_NAME} letters, digits, `_` and `-`");
        section.misfit(section.place(), message);
    }
}

fn needed_section<'a>(section: &mut Section<'a>, key: &'static str) -> Option<Section<'a>> {
    if !section.has(key) {
        let place = section.place_of(key);
        section.misfit(place.clone(), format!("is missing; write [{}]", place.key));
    }
    section.section(key)
}

/// What costs nobody knows what stays under no ceiling.
fn check_priced(section: &Section, models: &[&Model], named: &Named) {
    for model in models.iter().filter(|model| !named.priced.contains(&model.label)) {
        let message = format!("is in money, but model {} has no price; add it under [[prices]]", model.label);
        section.misfit_at("ceiling", message);
    }
}

/// A pipeline's models do what the pipeline does.
fn check_models(section: &Section, kind: PipelineKind, models: &[&Model]) {
    for model in models {
        let label = &model.label;
        match (kind, &model.speech) {
            (PipelineKind::Embed, Some(_)) => {
                let message = format!(
                    "{label} has no dimensions, so it transcribes; write dimensions under [models.{label}], or kind = \"transcribe\""
                );
                section.misfit_at("model", message);
            }
            (PipelineKind::Transcribe, None) => {
                let message = format!("{label} makes vectors; name a model that transcribes, which has no dimensions");
                section.misfit_at("model", message);
            }
            (PipelineKind::Embed, None) | (PipelineKind::Transcribe, Some(_)) => {}
        }
    }
}

/// A transcript goes where `write` says; there are neither chunks nor vectors.
fn check_transcribing(section: &mut Section, existing: Option<Existing>, cache: bool) {
    for key in ["chunks", "target"] {
        if section.take(key).is_some() {
            section.misfit_at(key, "means nothing with kind = \"transcribe\": the transcript goes where `write` says");
        }
    }
    if cache {
        section.misfit_at("cache", "is of vectors, of which a transcript has none");
    }
    if !section.has("file") {
        section.misfit_at("file", "is missing: it says where the recording is");
    }
    if !section.has("write") && !section.has("effects") {
        section.misfit_at("write", "is missing; write for example write = { transcript = \"{job.text}\" }");
    }
    if existing == Some(Existing::Adopt) {
        let message = "asks for vectors, of which a transcript has none; write \"backfill\" or \"ignore\"";
        section.misfit_at("existing", message);
    }
}

fn source(mut section: Section, kind: PipelineKind, has_file: bool) -> Option<Source> {
    let place = section.place();
    let table = section.need("table", table, "\"public.documents\"");
    let key = section.need("key", list(column), "[\"id\"]");
    let text = text_rule(&mut section);
    match (section.has("text"), has_file, section.has("text_by")) {
        (false, false, _) if kind == PipelineKind::Transcribe => {}
        (false, false, _) => {
            let message = "is missing, and there is no [file] either; write for example text = \"{content}\"";
            section.misfit_at("text", message);
        }
        (false, true, true) => {
            section.misfit_at("text_by", "picks a variant of source.text, but there is no such table");
        }
        (true, _, _) if kind == PipelineKind::Transcribe => {
            section.misfit_at("text", "means nothing with kind = \"transcribe\": what is read is the file");
        }
        (true, _, _) | (false, true, false) => {}
    }
    let weights = section.entries("weights").into_iter();
    let weights: BTreeMap<String, u16> =
        weights.filter_map(|(tenant, item)| Some((tenant, item.read(whole(1..=100))?))).collect();
    if !weights.is_empty() && !section.has("tenant") {
        section.misfit_at("weights", "means nothing without source.tenant: all rows are nobody's");
    }
    let source = Source {
        place,
        table: table?,
        key: key?,
        tenant: section.optional("tenant", tenant),
        weights,
        when: section.optional("when", sql),
        needs: section.optional("needs", sql),
        reopen_on_change: section.or("changes", word(&[("reopen", true), ("ignore", false)]), true),
        changed_at: section.optional("changed_at", column),
        grace: section.or("grace", duration, Duration::ZERO),
        order: section.optional("order", column),
        text,
        values: values(&mut section),
    };
    section.finish();
    Some(source)
}

/// A name, a quoted SQL string, or any other expression.
fn tenant(item: &Item) -> Result<TenantRule, String> {
    let rule = sql(item)?;
    let text = rule.text.trim();
    let is_word = !text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    if let (true, Ok(name)) = (is_word || text.starts_with('"'), identifier::whole(text)) {
        item.uses(&name);
        return Ok(TenantRule::Name(name));
    }
    let quoted = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\''));
    match quoted.map(|inner| inner.replace("''", "\u{0}")) {
        Some(inner) if !inner.contains('\'') => Ok(TenantRule::Constant(inner.replace('\u{0}', "'"))),
        _ => Ok(TenantRule::Expression(rule)),
    }
}

fn text_rule(section: &mut Section) -> Option<TextRule> {
    let by = section.optional("text_by", column);
    let item = section.take("text")?;
    match by {
        None if item.is_table() => {
            item.misfit("has variants, but source.text_by does not say which column picks one");
            None
        }
        None => item.read(template_of_row).map(TextRule::One),
        Some(_) if !item.is_table() => {
            item.misfit("must be a table of variants, because source.text_by picks one");
            None
        }
        Some(column) => {
            let entries = item.into_entries()?.into_iter();
            let mut variants: BTreeMap<String, Template> =
                entries.filter_map(|(word, item)| Some((word, item.read(template_of_row)?))).collect();
            let otherwise = variants.remove("else");
            Some(TextRule::By { column, variants, otherwise })
        }
    }
}

fn values(section: &mut Section) -> BTreeMap<String, Sql> {
    let entries = section.entries("values").into_iter();
    let value = |(name, item): (String, Item)| {
        if identifier::whole(&name).as_ref() != Ok(&name) || name == "tenant" {
            item.misfit("is not a name for a value; templates have to name it in braces");
        }
        Some((name, item.read(sql)?))
    };
    entries.filter_map(value).collect()
}

fn file(mut section: Section, stores: &BTreeSet<String>, owner: Option<&TenantRule>) -> Option<FileRule> {
    let store = section.need("store", one_of(stores, "stores"), "\"documents\"");
    let path = section.need("path", template_of_row, "\"{storage_path}\"");
    let missing = [("fail", false), ("wait", true)];
    let within = within(&mut section, path.as_ref(), owner);
    let rule = FileRule {
        store: store?,
        path: path?,
        within,
        when: section.optional("when", sql),
        media_type: section.optional("type", template(Scope::Row)),
        name: section.optional("name", template(Scope::Row)),
        wait_for_missing: section.or("missing", word(&missing), false),
    };
    section.finish();
    Some(rule)
}

/// What ties a path to its owner has to be said, if only to say that nothing does; a path that begins with the tenant's own folder
/// says it.
fn within(section: &mut Section, path: Option<&Template>, owner: Option<&TenantRule>) -> Option<Template> {
    if !section.has("within") {
        if let Some(folder) = path.and_then(|path| owners_folder(path, owner)) {
            return Some(folder);
        }
        let message = "is missing: the path comes from a row, whose owner may write what he likes; say what it must lie \
                       below, like \"{user_id}/\", or within = \"\" if every path is trusted";
        section.misfit_at("within", message);
    }
    section.read("within", |item| {
        let text = text_or_empty(item)?;
        let within = template(Scope::Row)(item)?;
        match text.as_str() {
            "" => Ok(None),
            text if text.ends_with('/') => Ok(Some(within)),
            _ => Err("must end with a slash, or it would let in neighbours whose names begin alike".to_owned()),
        }
    })?
}

/// The folder that a path begins with, where it is the tenant's.
fn owners_folder(path: &Template, owner: Option<&TenantRule>) -> Option<Template> {
    let [Piece::Name(name), Piece::Text(after), ..] = path.0.as_slice() else { return None };
    let owned = match (name, owner) {
        (Name::Tenant, Some(_)) => true,
        (Name::Row(name), Some(TenantRule::Name(owner))) => name == owner,
        _ => false,
    };
    (owned && after.starts_with('/')).then(|| Template(vec![Piece::Name(name.clone()), Piece::Text("/".to_owned())]))
}

fn skip(mut section: Section, kind: PipelineKind) -> Skip {
    if kind == PipelineKind::Transcribe && section.has("shorter_than") {
        section.misfit_at(
            "shorter_than",
            "means nothing with kind = \"transcribe\": how long the text is, is known when it is paid",
        );
    }
    let skip =
        Skip { shorter_than: section.or("shorter_than", at_least(0), 1_usize), when: section.optional("when", sql) };
    section.finish();
    skip
}

fn chunks(mut section: Section, models: &[&Model]) -> Chunking {
    let whole = section.or("whole", boolean, false);
    let size = chunk_size(&mut section, models);
    let (ChunkSize::Tokens(most) | ChunkSize::Characters(most)) = size;
    let chunks = Chunking {
        size,
        overlap: section.or("overlap", at_least(0), most / 10),
        whole,
        whole_up_to: section.or("whole_up_to", at_least(0), 0_usize),
        longer: section.or("longer", word(&LONGER), Longer::Fail),
        embed: section.optional("embed", embed),
    };
    if chunks.overlap >= most {
        section.misfit_at("overlap", format!("is {}, but a chunk has {most}; an overlap is shorter", chunks.overlap));
    }
    if whole {
        for key in ["tokens", "characters", "overlap", "whole_up_to"] {
            if section.has(key) {
                section.misfit_at(key, "means nothing with chunks.whole = true; remove one of them");
            }
        }
    } else {
        check_longest(&section, &chunks, models);
    }
    section.finish();
    chunks
}

const LONGER: [(&str, Longer); 3] = [("fail", Longer::Fail), ("cut", Longer::Cut), ("mean", Longer::Mean)];

fn chunk_size(section: &mut Section, models: &[&Model]) -> ChunkSize {
    let usual = models
        .iter()
        .map(|model| model.longest)
        .filter(|longest| *longest > 0)
        .min()
        .map_or(TOKENS, |longest| longest.min(TOKENS));
    let tokens = section.read("tokens", at_least(1));
    let characters = section.read("characters", at_least(1));
    match (tokens, characters) {
        (None, Some(characters)) => ChunkSize::Characters(characters),
        (tokens, None) => ChunkSize::Tokens(tokens.unwrap_or(usual)),
        (Some(tokens), Some(_)) => {
            section.misfit_at("characters", "is given beside chunks.tokens; remove one of them");
            ChunkSize::Tokens(tokens)
        }
    }
}

fn check_longest(section: &Section, chunks: &Chunking, models: &[&Model]) {
    let Some(model) = models.iter().min_by_key(|model| model.longest) else { return };
    let check = |key: &str, tokens: usize| {
        if tokens > model.longest {
            let message = format!("is {tokens}, but model {} takes {}; write less", model.label, model.longest);
            section.misfit_at(key, message);
        }
    };
    if let ChunkSize::Tokens(tokens) = chunks.size {
        check("tokens", tokens);
    }
    check("whole_up_to", chunks.whole_up_to);
}

fn embed(item: &Item) -> Result<Template, String> {
    text(item)?;
    let embed = template(Scope::Embed)(item)?;
    if embed.names().contains(&Name::Chunk(ChunkFact::Text)) {
        Ok(embed)
    } else {
        Err("does not name {chunk.text}, so every chunk of a row would have the same vector".to_owned())
    }
}
