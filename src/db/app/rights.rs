//! What this role may do with the application's tables.

use sqlx::PgConnection;

use crate::config::{Pipeline, Place, Target};

use super::catalog::{self, Table};
use super::check::Misfit;
use super::quote;

/// Names the rights this role lacks on source and target, and rows that would be hidden from it.
pub(super) fn check(
    (role, closed): &(String, Vec<String>),
    source: &Table,
    target: Option<&Table>,
    pipeline: &Pipeline,
    misfits: &mut Vec<Misfit>,
) {
    let role = quote(role);
    let place = &pipeline.source.place;
    for schema in closed {
        misfits.push(
            Misfit::new(place, format!("this role may not use schema {schema}"))
                .fix(format!("grant usage on schema {} to {role};", quote(schema))),
        );
    }
    let mut need = |place: &Place, table: &Table, rights: &[(bool, &str)]| {
        let missing: Vec<&str> = rights.iter().filter(|(held, _)| !held).map(|(_, right)| *right).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            misfits.push(
                Misfit::new(place, format!("this role may not {missing} {}", table.name))
                    .fix(format!("grant {missing} on {} to {role};", table.sql())),
            );
        }
    };
    // Locking a row asks for the right to update it.
    need(place, source, &[(source.may_select, "select"), (source.may_update, "update")]);
    if let Some(target) = target {
        let rights = [
            (target.may_select, "select"),
            (target.may_insert, "insert"),
            (target.may_update, "update"),
            (target.may_delete, "delete"),
        ];
        need(&pipeline.target.place, target, &rights);
    }
    for (place, table) in [(place, Some(source)), (&pipeline.target.place, target)] {
        let Some(table) = table.filter(|table| table.hides_rows) else { continue };
        misfits.push(
            Misfit::new(place, format!("row security of {} hides rows from this role", table.name))
                .fix(format!("alter role {role} bypassrls;")),
        );
    }
}

/// Names the sequences that give new chunks what we do not, and that this role may not ask.
pub(super) async fn of_sequences(
    connection: &mut PgConnection,
    role: &str,
    target: Option<&Table>,
    rule: &Target,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    let Some(table) = target else { return Ok(()) };
    let written = |column: &str| rule.parent.iter().chain(&rule.columns).any(|one| one.column.first() == column);
    for (column, sequence) in catalog::closed_sequences(connection, table).await? {
        if written(&column) {
            continue;
        }
        let message =
            format!("this role may not use sequence {sequence}, the default of column {column} of {}", table.name);
        misfits.push(
            Misfit::new(&rule.place, message).fix(format!("grant usage on sequence {sequence} to {};", quote(role))),
        );
    }
    Ok(())
}
