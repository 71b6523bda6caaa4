//! What this role may do with the application's tables.

use sqlx::PgConnection;

use crate::config::{Pipeline, Place};

use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::grants::forbidden;
use super::plan::{Plan, TargetPlan};
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
            Misfit::of_role(place, format!("this role may not use schema {schema}"))
                .fix(format!("grant usage on schema {} to {role};", quote(schema))),
        );
    }
    let mut need = |place: &Place, table: &Table, rights: &[(bool, &str)]| {
        let missing: Vec<&str> = rights.iter().filter(|(held, _)| !held).map(|(_, right)| *right).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            misfits.push(
                Misfit::of_role(place, format!("this role may not {missing} {}", table.name))
                    .fix(format!("grant {missing} on {} to {role};", table.sql())),
            );
        }
    };
    need(place, source, &[(source.may_select, "select")]);
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
            Misfit::of_role(place, format!("row security of {} hides rows from this role", table.name))
                .fix(format!("alter role {role} bypassrls;")),
        );
    }
}

impl Plan {
    fn written(&self) -> Vec<&Column> {
        let status = self
            .status
            .iter()
            .flat_map(|status| status.column.iter().chain(status.columns.iter().map(|write| &write.column)));
        let target = match &self.target {
            TargetPlan::Row { columns, .. } => columns.as_slice(),
            TargetPlan::Chunks { .. } | TargetPlan::None => &[],
        };
        self.write.iter().chain(target).map(|write| &write.column).chain(status).collect()
    }

    /// Whether anything is written on the source row itself.
    pub(super) fn writes_source(&self) -> bool {
        !self.written().is_empty()
    }

    /// The columns of the source row that are written; of one that is only locked, a column of its key.
    pub(super) fn source_columns(&self) -> Vec<&Column> {
        let written = self.written();
        if written.is_empty() { self.key.iter().take(1).collect() } else { written }
    }

    /// A query over everything that the configuration's expressions read of a row.
    pub(super) fn everything_read(&self) -> String {
        let file = self.pipeline.file.as_ref().and_then(|file| file.when.as_ref());
        let rules = [self.pipeline.skip.when.as_ref(), file].into_iter().flatten().map(|sql| format!("({})", sql.text));
        let parts: Vec<String> = [&self.when, &self.tenant, &self.fingerprint]
            .into_iter()
            .chain(&self.needs)
            .chain(&self.expressions)
            .cloned()
            .chain(rules)
            .collect();
        format!("select {} from {}", parts.join(", "), self.relation(&self.source))
    }
}

/// Names the columns of the source row that this role may not write. Of a row that is only locked, one column will do.
pub(super) fn check_columns(role: &str, plan: &Plan, misfits: &mut Vec<Misfit>) {
    let table = &plan.source_table;
    let columns = forbidden(table, &plan.source_columns());
    if !columns.is_empty() && (plan.writes_source() || !table.may_lock) {
        let quoted: Vec<String> = columns.iter().map(|column| quote(column)).collect();
        let what = if plan.writes_source() { format!("write {}", columns.join(", ")) } else { "lock rows".to_owned() };
        misfits.push(
            Misfit::of_role(&plan.pipeline.source.place, format!("this role may not {what} of {}", table.name))
                .fix(format!("grant update ({}) on {} to {};", quoted.join(", "), table.sql(), quote(role))),
        );
    }
}

/// Names the sequences that rows we insert draw from, and that this role may not use: no plan of a statement tells of them.
pub(super) async fn check_sequences(
    connection: &mut PgConnection,
    role: &str,
    plan: &Plan,
    target: Option<&Table>,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    let mut tables: Vec<(&Place, Table)> =
        target.map(|table| (&plan.pipeline.target.place, table.clone())).into_iter().collect();
    for effect in &plan.effects {
        for name in effect.inserts() {
            tables.extend(catalog::table(connection, &name).await?.map(|table| (&effect.place, table)));
        }
    }
    for (place, table) in tables {
        for (sequence, _) in catalog::sequences(connection, &table).await?.into_iter().filter(|(_, may_use)| !may_use) {
            misfits.push(
                Misfit::of_role(
                    place,
                    format!("this role may not use sequence {sequence}, from which {} is numbered", table.name),
                )
                .fix(format!("grant usage on sequence {sequence} to {};", quote(role))),
            );
        }
    }
    Ok(())
}
