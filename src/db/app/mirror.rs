//! The status word that source rows have while their jobs have no end.

use sqlx::PgConnection;

use crate::domain::{JobId, LeaseId, SourceKey};

use super::plan::Plan;
use super::write::bound;
use super::{asked, by_column};

/// A job that is worked on, and its row.
#[derive(Debug, Clone)]
pub struct WorkedOn {
    pub job: JobId,
    pub lease: LeaseId,
    pub key: SourceKey,
}

/// Sets a word on rows of the set that nobody else holds and whose jobs are still in hand: asked under the job's lock as well, or a commit
/// that ends it meanwhile would have its own word written over. Best effort, in one statement. Its commit is not waited for: that of the
/// job writes the next word.
///
/// # Errors
/// The database is away or refuses; nothing depends on it.
pub async fn mirror_in_hand(
    connection: &mut PgConnection,
    plan: &Plan,
    jobs: &[&WorkedOn],
    word: &str,
) -> sqlx::Result<()> {
    let Some(column) = plan.status.as_ref().and_then(|status| status.column.as_ref()) else { return Ok(()) };
    let count = plan.key.len();
    let [held, leases, writer, new] = std::array::from_fn(|nth| count + 1 + nth);
    let arrays: Vec<String> = (1..=count).map(|nth| format!("${nth}::text[]")).collect();
    let names: Vec<String> = (1..=count).map(|nth| format!("gm_k{nth}")).collect();
    let statement = format!(
        "with free as (select {key}, asked.gm_job, asked.gm_lease from set_config('gristmill.writer', ${writer}, true) as gm_writer, \
                 set_config('lock_timeout', '100ms', true) as gm_patience, set_config('synchronous_commit', 'off', true) as gm_haste, \
                 unnest({arrays}, ${held}::bigint[], ${leases}::uuid[]) as asked ({names}, gm_job, gm_lease) \
                 join {table} as source on {key_match} \
             where {when} and source.{column}::text is distinct from ${new} \
             order by {key} for no key update of source skip locked), \
         held as (select free.* from free join gristmill.embedding_jobs as job on job.id = free.gm_job and job.lease_id = free.gm_lease \
             where job.lease_until > clock_timestamp() for share of job skip locked) \
         update {table} as source set {column} = (${new}::text)::{type_sql} from held where {same}",
        key = plan.key_list("source"),
        arrays = arrays.join(", "),
        names = names.join(", "),
        table = plan.source,
        key_match = plan.key_match("source"),
        when = plan.when,
        column = column.sql(),
        type_sql = column.type_sql(),
        same = same_key(plan, "held"),
    );
    let keys: Vec<&SourceKey> = jobs.iter().map(|worked_on| &worked_on.key).collect();
    let query = bound(&statement, by_column(&keys, count));
    let query = query.bind(jobs.iter().map(|worked_on| worked_on.job.0).collect::<Vec<_>>());
    let query = query.bind(jobs.iter().map(|worked_on| worked_on.lease.0).collect::<Vec<_>>());
    query.bind(&plan.pipeline.name).bind(word).execute(connection).await?;
    Ok(())
}

/// Gives rows that nobody else holds another word: those that have one of `instead_of`, or, where none is said, those in the set. Best
/// effort, in one statement.
///
/// # Errors
/// The database is away or refuses; nothing depends on it.
pub async fn mirror(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
    word: &str,
    instead_of: &[&str],
) -> sqlx::Result<()> {
    let Some(column) = plan.status.as_ref().and_then(|status| status.column.as_ref()) else { return Ok(()) };
    let [writer, new, old] = std::array::from_fn(|nth| plan.key.len() + 1 + nth);
    let asked_for = if instead_of.is_empty() {
        format!("{} and source.{}::text is distinct from ${new}", plan.when, column.sql())
    } else {
        format!("source.{}::text = any (${old})", column.sql())
    };
    let statement = format!(
        "with free as (select {key} from set_config('gristmill.writer', ${writer}, true) as gm_writer, \
                 set_config('lock_timeout', '100ms', true) as gm_patience, \
                 {asked} join {table} as source on {key_match} \
             where {asked_for} \
             order by {key} for no key update of source skip locked) \
         update {table} as source set {column} = (${new}::text)::{type_sql} from free where {same}",
        key = plan.key_list("source"),
        asked = asked(plan.key.len()),
        table = plan.source,
        key_match = plan.key_match("source"),
        column = column.sql(),
        type_sql = column.type_sql(),
        same = same_key(plan, "free"),
    );
    let query = bound(&statement, by_column(keys, plan.key.len())).bind(&plan.pipeline.name).bind(word);
    let query = if instead_of.is_empty() { query } else { query.bind(instead_of) };
    query.execute(connection).await?;
    Ok(())
}

fn same_key(plan: &Plan, row: &str) -> String {
    plan.key.iter().map(|column| format!("source.{0} = {row}.{0}", column.sql())).collect::<Vec<_>>().join(" and ")
}
