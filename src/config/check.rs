//! From the file to a [`Config`]: each section by its own module, in the order in which they refer to each other.

use std::collections::{BTreeMap, BTreeSet};

use super::raw::{Environment, Reader, Section};
use super::{Config, ConfigError, Model, limits, models, pipelines, settings, stores, targets};

pub(super) fn config(file: &str, text: &str, environment: Environment) -> Result<Config, Vec<ConfigError>> {
    let reader = Reader::new(file, text, environment);
    let config = reader.parse(text).and_then(|root| sections(file, root));
    let misfits = reader.into_misfits();
    match config {
        Some(config) if misfits.is_empty() => Ok(config),
        _ => Err(misfits),
    }
}

/// What pipelines may refer to. What was named but did not hold is none, so that one mistake is one error.
pub(super) struct Named {
    pub(super) stores: BTreeSet<String>,
    pub(super) models: BTreeMap<String, Option<Model>>,
    pub(super) limits: BTreeSet<String>,
    /// Models that somebody has put a price on, or that cost nothing.
    pub(super) priced: BTreeSet<String>,
}

pub(super) fn sections(file: &str, mut root: Section) -> Option<Config> {
    let database = settings::database(root.section_or_empty("database").overridable());
    let worker = settings::worker(root.section_or_empty("worker").overridable());
    let parser = settings::parser(root.section_or_empty("parser").overridable());

    let stores = named(&mut root, "stores", |_, section| stores::store(section));
    let providers = named(&mut root, "providers", models::provider);
    let models = named(&mut root, "models", |name, section| models::model(name, section, &providers));
    let prices = models::prices(root.repeated_sections("prices"), &models);

    let limits = named(&mut root, "limits", limits::limit);

    let free = |model: &Model| {
        providers.get(&model.provider).and_then(Option::as_ref).is_some_and(|provider| provider.kind.runs_here())
    };
    let free = models.values().flatten().filter(|model| free(model)).map(|model| model.label.clone());
    let priced = prices.iter().map(|price| price.model.clone()).chain(free).collect();
    let names =
        Named { stores: stores.keys().cloned().collect(), models, limits: limits.keys().cloned().collect(), priced };
    let sections = root.named_sections("pipelines").into_iter();
    let pipelines: Vec<_> = sections.filter_map(|(name, section)| pipelines::pipeline(name, section, &names)).collect();
    targets::check_owners(&root, &pipelines);
    root.finish();

    Some(Config {
        file: file.to_owned(),
        database: database?,
        worker,
        parser,
        stores: held(stores),
        providers: held(providers),
        models: held(names.models),
        prices,
        limits: held(limits),
        pipelines,
    })
}

fn named<T>(
    root: &mut Section,
    key: &'static str,
    read: impl Fn(String, Section) -> Option<T>,
) -> BTreeMap<String, Option<T>> {
    let sections = root.named_sections(key).into_iter();
    sections.map(|(name, section)| (name.clone(), read(name, section))).collect()
}

fn held<T>(all: BTreeMap<String, Option<T>>) -> BTreeMap<String, T> {
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
