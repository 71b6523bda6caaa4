//! `[[pipelines.x.effects]]`: statements of the configuration, their occasions and the rows they share.

use std::collections::BTreeSet;

use super::identifier;
use super::raw::{Item, Section};
use super::values::{Scope, boolean, list, table, template, text, word};
use super::{Effect, JobFact, Name, Occasion, Shared, Statement};

const ON: [(&str, Occasion); 3] = [("done", Occasion::Done), ("skipped", Occasion::Skipped), ("left", Occasion::Left)];

/// What an effect may begin with: it changes rows, and a statement that ends the transaction is none.
const VERBS: &[&str] = &["insert", "update", "delete", "merge", "select", "with"];

/// Reads the effects of a pipeline, in their order.
pub(super) fn effects(section: &mut Section) -> Vec<Effect> {
    let mut seen = BTreeSet::new();
    section.repeated_sections("effects").into_iter().filter_map(|part| effect(part, &mut seen)).collect()
}

fn effect(mut section: Section, seen: &mut BTreeSet<String>) -> Option<Effect> {
    let place = section.place();
    let name = section.need("name", text, "\"usage\"");
    if let Some(name) = &name
        && !seen.insert(name.clone())
    {
        section.misfit_at("name", format!("{name} is the name of another effect of this pipeline"));
    }
    let sql = section.need("sql", list(statement), "\"insert into …\"");
    let on = section.or("on", list(occasion), vec![Occasion::Done]);
    let has_shared = section.has("shared");
    let shared = section.section("shared").and_then(shared);
    let optional = section.or("optional", boolean, false);
    let repeatable = section.or("repeatable", boolean, false);
    if repeatable {
        check_repeatable(&section, sql.iter().flatten(), &on);
    }
    section.finish();
    // Given but not right: the misfit is recorded, and there is no effect that runs without its lock.
    (shared.is_some() || !has_shared).then_some(())?;
    Some(Effect { name: name?, place, sql: sql?, on, shared, optional, repeatable })
}

fn occasion(item: &Item) -> Result<Occasion, String> {
    if item.text()?.value == "failed" {
        let instead = "status.columns write to its row, and signal tells of it";
        return Err(format!("an effect goes with what its job writes, and one that failed writes nothing: {instead}"));
    }
    word(&ON)(item)
}

/// Run again by itself, an effect knows of a job what its row keeps.
fn check_repeatable<'s>(section: &Section, sql: impl Iterator<Item = &'s Statement>, on: &[Occasion]) {
    let forgotten = |name: &&Name| matches!(name, Name::Job(fact) if !is_kept(*fact));
    if let Some(name) = sql.flat_map(Statement::names).find(forgotten) {
        let message = format!("cannot be: {name} is known while the job runs, and not when this effect is run again");
        section.misfit_at("repeatable", message);
    }
    if !on.contains(&Occasion::Done) {
        section.misfit_at("repeatable", "is for effects of done jobs: only for these is one run again");
    }
}

fn is_kept(fact: JobFact) -> bool {
    match fact {
        JobFact::Id
        | JobFact::Revision
        | JobFact::Attempts
        | JobFact::Chunks
        | JobFact::Pages
        | JobFact::Ms
        | JobFact::Pipeline
        | JobFact::Model
        | JobFact::Provider
        | JobFact::Error
        | JobFact::State
        | JobFact::Cause
        | JobFact::Started
        | JobFact::Finished
        | JobFact::Now
        | JobFact::Key => true,
        JobFact::Tokens
        | JobFact::TokensOfText
        | JobFact::Words
        | JobFact::Characters
        | JobFact::Cost
        | JobFact::Seconds
        | JobFact::Segments
        | JobFact::Language
        | JobFact::LanguageProbability
        | JobFact::Text => false,
    }
}

fn statement(item: &Item) -> Result<Statement, String> {
    let statement = Statement::parse(&text(item)?, item.body_place())?;
    statement.names().into_iter().try_for_each(|name| Scope::Job.check(name))?;
    if VERBS.contains(&statement.verb().as_str()) {
        Ok(statement)
    } else {
        Err(format!("must begin with one of {}", VERBS.join(", ")))
    }
}

fn shared(mut section: Section) -> Option<Shared> {
    let place = section.place();
    let table = section.need("table", table, "\"public.folders\"");
    let mut key = Vec::new();
    for (column, item) in section.entries("key") {
        key.extend(item.read(|item| Ok((identifier::whole(&column)?, template(Scope::Row)(item)?))));
    }
    if key.is_empty() {
        section.misfit_at(
            "key",
            "is missing: it says which row is shared; write for example key = { id = \"{folder_id}\" }",
        );
    }
    section.finish();
    Some(Shared { place, table: table?, key })
}
