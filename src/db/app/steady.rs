//! What need not be asked of a row again: Postgres writes a new version of a row at each change, and a commit of ours changes only the
//! columns that it names.

use sqlx::PgConnection;

use super::catalog::{Column, Table};
use super::plan::{Plan, TargetPlan};
use super::shape::content_names;

/// How far a pipeline's content is bound to its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steady {
    /// The content is made of the row's own columns: as long as the row is of the same version, it is the same.
    pub versioned: bool,
    /// A commit of the pipeline leaves the content as it is, and nobody else has a say in its writes.
    pub spared: bool,
}

/// What holds for a pipeline.
pub(super) async fn of(connection: &mut PgConnection, plan: &Plan, target: Option<&Table>) -> sqlx::Result<Steady> {
    let target: Vec<_> = target.iter().map(|table| table.oid).collect();
    let written: Vec<String> = written(plan).map(|column| column.name.clone()).collect();
    // Functions in our schema are of triggers that only announce.
    let found = sqlx::query!(
        r#"select coalesce((select c.relkind = 'r' and am.amname = 'heap' from pg_catalog.pg_class c
                            join pg_catalog.pg_am am on am.oid = c.relam where c.oid = $1), false) as "heap!",
                  not exists (select from pg_catalog.pg_class where (oid = $1 or oid = any ($2)) and (relkind <> 'r' or relhassubclass or relhasrules))
                  and not exists (
                      select from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
                      join pg_catalog.pg_namespace n on n.oid = p.pronamespace
                      where not t.tgisinternal and n.nspname <> 'gristmill'
                        -- Of the source's, those that an update fires, of any column or of one of ours.
                        and (t.tgrelid = any ($2) or t.tgrelid = $1 and t.tgtype & 16 <> 0
                             and (cardinality(t.tgattr::int2[]) = 0
                                  or exists (select from pg_catalog.pg_attribute a where a.attrelid = $1
                                             and a.attnum = any (t.tgattr::int2[]) and a.attname = any ($3::text[]))))
                  ) as "quiet!""#,
        plan.source_table.oid,
        &target,
        &written,
    )
    .fetch_one(connection)
    .await?;
    let versioned = found.heap && plan.source_table.may_select && plan.pipeline.source.values.is_empty();
    let names = content_names(&plan.pipeline);
    let mut content = names.iter().filter_map(|name| plan.source_table.column(name));
    let spared = versioned
        && found.quiet
        && plan.effects.is_empty()
        && plan.needs.is_none()
        && content.all(|column| !column.generated && !written.contains(&column.name));
    Ok(Steady { versioned, spared })
}

/// The source's columns that a commit sets.
fn written(plan: &Plan) -> impl Iterator<Item = &Column> {
    let of_target = match &plan.target {
        TargetPlan::Row { columns, .. } => columns.as_slice(),
        TargetPlan::Chunks { .. } | TargetPlan::None => &[],
    };
    let of_status = plan.status.iter().flat_map(|status| &status.columns);
    let columns = of_target.iter().chain(&plan.write).chain(of_status).map(|write| &write.column);
    columns.chain(plan.status.iter().filter_map(|status| status.column.as_ref()))
}
