//! `[limits.x]`: how much a tenant may still spend.

use super::raw::{Item, Section};
use super::template::Name;
use super::values::{list, text, word};
use super::{Limit, Statement};

pub(super) fn limit(name: String, mut section: Section) -> Option<Limit> {
    let place = section.place();
    let sql = section.need("sql", list(question), "\"select tokens_left as tokens from …\"");
    let fails = section.or("over", word(&[("snooze", false), ("fail", true)]), false);
    section.finish();
    Some(Limit { name, place, sql: sql?, fails })
}

fn question(item: &Item) -> Result<Statement, String> {
    let statement = Statement::parse(&text(item)?, item.body_place())?;
    if let Some(other) = statement.names().into_iter().find(|name| **name != Name::Tenant) {
        return Err(format!(
            "`{other}` means nothing here; a limit is asked per tenant, so only {{tenant}} can be named"
        ));
    }
    if ["select", "with"].contains(&statement.verb().as_str()) {
        Ok(statement)
    } else {
        Err("must begin with select or with".to_owned())
    }
}
