//! What need not be asked of a row again: Postgres writes a new version of a row at each change, and a commit of ours changes only the
//! columns that it names.

use sqlx::PgConnection;

use crate::config::{Pipeline, TenantRule};

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
    /// Its rows, and what they have in the target, are found by indexes over their whole keys and by no others, and no statement of others
    /// runs in ours: plans that were made for any of its tables when it was empty serve when it is large.
    pub read_by_key: bool,
    /// The same for its commits: no effect and no trigger of the application runs in them, and foreign keys have one column.
    pub written_by_key: bool,
}

/// What holds for a pipeline.
pub(super) async fn of(connection: &mut PgConnection, plan: &Plan, target: Option<&Table>) -> sqlx::Result<Steady> {
    let (parent, version): (Vec<String>, Option<&Column>) = match &plan.target {
        TargetPlan::Chunks { parent, version, .. } => {
            (parent.iter().map(|write| write.column.name.clone()).collect(), version.as_ref().map(|(column, _)| column))
        }
        TargetPlan::Row { .. } | TargetPlan::None => (Vec::new(), None),
    };
    let asked_of_chunks: Vec<String> =
        parent.iter().cloned().chain(version.map(|column| column.name.clone())).collect();
    let key: Vec<String> = plan.key.iter().map(|column| column.name.clone()).collect();
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
                  ) as "quiet!",
                  not exists (select from pg_catalog.pg_class where (oid = $1 or oid = any ($2)) and (relkind <> 'r' or relhassubclass or relhasrules))
                  and not exists (
                      select from (select $1::oid as relation, $4::text[] as wanted, $4::text[] as asked
                                   union all select unnest($2::oid[]), $5::text[], $6::text[]) as of_table
                      cross join lateral (
                          select coalesce(bool_or(wanted and whole and plain), false) as found, coalesce(bool_or(not whole), false) as others
                          from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
                          join pg_catalog.pg_am am on am.oid = c.relam
                          join pg_catalog.pg_attribute lead on lead.attrelid = i.indrelid and lead.attnum = i.indkey[0]
                          cross join lateral (
                              select lead.attname = any (of_table.wanted) as wanted,
                                     of_table.wanted <@ array(select a.attname::text from pg_catalog.pg_attribute a
                                                              where a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])) as whole,
                                     i.indpred is null and am.amname = 'btree' as plain
                          ) as its
                          where i.indrelid = of_table.relation and i.indisvalid and lead.attname = any (of_table.asked)
                      ) as indexes
                      where not found or others
                  ) as "indexed!",
                  not exists (select from pg_catalog.pg_constraint where contype = 'f' and cardinality(conkey) > 1
                              and (conrelid = $1 or conrelid = any ($2) or confrelid = $1 or confrelid = any ($2))) as "simple!""#,
        plan.source_table.oid,
        &target,
        &written,
        &key,
        &parent,
        &asked_of_chunks,
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
    let read_by_key = found.indexed && plan.queue.is_none() && !asks_others(&plan.pipeline);
    let written_by_key = read_by_key && found.quiet && found.simple && plan.effects.is_empty();
    Ok(Steady { versioned, spared, read_by_key, written_by_key })
}

/// Whether an expression of the configuration may read more than its row: such a statement is planned as any other of the application's.
fn asks_others(pipeline: &Pipeline) -> bool {
    let source = &pipeline.source;
    let of_tenant = match &source.tenant {
        Some(TenantRule::Expression(sql)) => Some(sql),
        Some(TenantRule::Name(_) | TenantRule::Constant(_)) | None => None,
    };
    let of_file = pipeline.file.as_ref().and_then(|file| file.when.as_ref());
    let conditions = [&source.when, &source.needs, &pipeline.skip.when].into_iter().flatten();
    let mut all = source.values.values().chain(conditions).chain(of_tenant).chain(of_file);
    all.any(|sql| sql.text.to_lowercase().contains("select"))
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
