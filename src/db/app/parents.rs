//! Rows that chunks refer to by foreign keys. Postgres locks them as it inserts the chunks, one after the other and waiting for each: a
//! transaction of the application that holds two of them, or one and the source row, could meet a commit in a deadlock. So a commit
//! locks them before it writes anything, and passes over what somebody holds.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::config::{Name, Place, TableName, Template};

use super::assign::WriteKind;
use super::catalog::{self, ForeignKey, Table};
use super::check::Misfit;
use super::effects::{self, SharedTable};
use super::plan::TargetPlan;
use super::quote;

/// Rows of one table that chunks refer to.
#[derive(Debug, Clone)]
pub struct ParentPlan {
    pub(super) name: TableName,
    /// The columns that are referred to.
    pub(super) columns: Vec<String>,
    pub table: SharedTable,
    /// What the columns that refer to it are written with: names of the source row only.
    pub key: Vec<Template>,
}

/// Finds the tables whose rows new chunks will refer to, and says which of them this role may not lock.
pub(super) async fn resolve(
    connection: &mut PgConnection,
    role: &str,
    source: &Table,
    table: Option<&Table>,
    target: &TargetPlan,
    place: &Place,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Vec<ParentPlan>> {
    let Some(table) = table else { return Ok(Vec::new()) };
    let mut plans = Vec::new();
    for key in catalog::foreign_keys(connection, table).await? {
        let Some(templates) = templates(&key, source, target) else { continue };
        if !key.may_lock {
            misfits.push(unlockable(&key, role, place));
            continue;
        }
        let columns = key.referenced.iter().map(|column| quote(column)).zip(key.types).collect();
        plans.push(ParentPlan {
            name: key.references.clone(),
            columns: key.referenced.clone(),
            table: SharedTable { table: catalog::table_sql(&key.references), columns },
            key: templates,
        });
    }
    Ok(plans)
}

/// What a foreign key's columns are written with, where the source row alone says it before the chunks are there. The source row
/// itself is locked anyway.
fn templates(key: &ForeignKey, source: &Table, target: &TargetPlan) -> Option<Vec<Template>> {
    let TargetPlan::Chunks { parent, columns, .. } = target else { return None };
    let is_parent = |name: &String| parent.iter().any(|write| write.column.name == *name);
    if !key.same_types || (key.references == source.name && key.columns.iter().all(is_parent)) {
        return None;
    }
    let of_row = |name: &Name| matches!(name, Name::Row(_) | Name::Tenant);
    let template = |name: &String| {
        let write = parent.iter().chain(columns).find(|write| write.column.name == *name)?;
        match &write.kind {
            WriteKind::Plain(template) => template.names().into_iter().all(of_row).then(|| template.clone()),
            WriteKind::Vector | WriteKind::Sparse(_) | WriteKind::Merge(_) => None,
        }
    };
    key.columns.iter().map(template).collect()
}

fn unlockable(key: &ForeignKey, role: &str, place: &Place) -> Misfit {
    let columns = key.referenced.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ");
    Misfit::warning(
        place,
        format!(
            "chunks refer to {}, whose rows this role may not lock: a transaction that deletes them, or takes several of them \
             `for update`, may meet a commit in a deadlock",
            key.references
        ),
    )
    .fix(format!(
        "grant select ({columns}), update ({columns}) on {} to {};",
        catalog::table_sql(&key.references),
        quote(role)
    ))
}

/// Locks the rows that chunks will refer to, passing over those somebody deletes or holds `for update`. Returns the keys of these.
///
/// # Errors
/// The database is away, or a key does not fit its column's type.
pub async fn lock_parents(
    connection: &mut PgConnection,
    table: &SharedTable,
    keys: &BTreeSet<Vec<String>>,
) -> sqlx::Result<BTreeSet<Vec<String>>> {
    effects::lock(connection, table, keys, "key share of shared skip locked").await
}
