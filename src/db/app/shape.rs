//! The SQL fragments that every statement over a source is built from.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::config::{Assignment, Name, Pipeline, Template, TenantRule, TextRule, Value};

use super::catalog::Table;
use super::check::Misfit;
use super::{literal, quote};

/// Every row name the pipeline uses, each a column of the source or one of its values.
pub(super) fn row_names(pipeline: &Pipeline, table: &Table, misfits: &mut Vec<Misfit>) -> Vec<String> {
    let mut names = content_names(pipeline);
    let assignments = pipeline.write.iter().chain(pipeline.status.iter().flat_map(|status| &status.columns));
    names.extend(assignments.flat_map(assignment_names));
    names.extend(pipeline.queue.iter().flat_map(|queue| &queue.columns).flat_map(assignment_names));
    if let Some(TenantRule::Name(name)) = &pipeline.source.tenant {
        names.insert(name.clone());
    }
    for name in &names {
        if table.column(name).is_none() && !pipeline.source.values.contains_key(name) {
            misfits.push(Misfit::new(
                pipeline.place_of(name),
                format!(
                    "{{{name}}} is neither a column of {} nor one of source.values; it has {}",
                    table.name,
                    table.column_names()
                ),
            ));
        }
    }
    names.into_iter().collect()
}

/// The names whose values the vectors, or what is stored beside them, are made of.
pub(super) fn content_names(pipeline: &Pipeline) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match &pipeline.source.text {
        None => {}
        Some(TextRule::One(template)) => names.extend(names_of(template)),
        Some(TextRule::By { column, variants, otherwise }) => {
            names.insert(column.clone());
            names.extend(variants.values().chain(otherwise).flat_map(names_of));
        }
    }
    if let Some(file) = &pipeline.file {
        let templates = [Some(&file.path), file.within.as_ref(), file.media_type.as_ref(), file.name.as_ref()];
        names.extend(templates.into_iter().flatten().flat_map(names_of));
    }
    names.extend(pipeline.chunks.embed.iter().flat_map(names_of));
    names.extend(pipeline.target.parent.iter().chain(&pipeline.target.columns).flat_map(assignment_names));
    names
}

fn names_of(template: &Template) -> Vec<String> {
    template
        .names()
        .into_iter()
        .filter_map(|name| if let Name::Row(name) = name { Some(name.clone()) } else { None })
        .collect()
}

fn assignment_names(assignment: &Assignment) -> Vec<String> {
    match &assignment.value {
        Value::Template(template) => names_of(template),
        Value::Merge(keys) => keys.values().flat_map(names_of).collect(),
    }
}

/// The SQL every statement over the source is built from.
pub(super) struct Shape {
    pub(super) lateral: String,
    pub(super) expressions: Vec<String>,
    pub(super) when: String,
    pub(super) needs: Option<String>,
    pub(super) tenant: String,
    pub(super) fingerprint: String,
    /// A digest of all that is read of a row to see whether it belongs to the set, and whether it changed.
    pub(super) watched: String,
}

impl Shape {
    pub(super) fn new(pipeline: &Pipeline, names: &[String]) -> Self {
        let source = &pipeline.source;
        let expression = |name: &str| {
            if source.values.contains_key(name) {
                format!("value.{}::text", quote(name))
            } else {
                format!("source.{}::text", quote(name))
            }
        };
        let content: Vec<String> = content_names(pipeline).iter().map(|name| expression(name)).collect();
        let tenant = match &source.tenant {
            None => "''".to_owned(),
            Some(TenantRule::Name(name)) => format!("coalesce({}, '')", expression(name)),
            Some(TenantRule::Constant(word)) => literal(word),
            Some(TenantRule::Expression(sql)) => format!("coalesce(({})::text, '')", sql.text),
        };
        let lateral = Self::lateral(pipeline);
        let when =
            source.when.as_ref().map_or_else(|| "true".to_owned(), |sql| format!("coalesce(({}), false)", sql.text));
        let needs = source.needs.as_ref().map(|sql| format!("coalesce(({}), false)", sql.text));
        let fingerprint = format!("sha256(convert_to(jsonb_build_array({})::text, 'UTF8'))", content.join(", "));
        let read = [&lateral, &when, needs.as_deref().unwrap_or_default(), &tenant, &fingerprint].join("\n");
        Self {
            watched: Sha256::digest(read).iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
            expressions: names.iter().map(|name| expression(name)).collect(),
            lateral,
            when,
            needs,
            tenant,
            fingerprint,
        }
    }

    fn lateral(pipeline: &Pipeline) -> String {
        let values: Vec<String> =
            pipeline.source.values.iter().map(|(name, sql)| format!("({}) as {}", sql.text, quote(name))).collect();
        if values.is_empty() {
            String::new()
        } else {
            format!(" cross join lateral (select {}) as value", values.join(", "))
        }
    }
}
