//! `gristmill.announcements`: what was announced under an isolation in which an existing job cannot be opened.

use sqlx::{Connection as _, PgPool};

/// Folds up to `limit` announcements into their jobs; returns how many jobs it opened. Jobs that somebody holds are left for the
/// next time: an application's transaction may hold one of them and want another.
pub async fn fold(pool: &PgPool, limit: i64) -> sqlx::Result<i64> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    // A job that is being inserted cannot be passed over.
    sqlx::query!("set local lock_timeout = '100ms'").execute(&mut *transaction).await?;
    let opened = sqlx::query_scalar!(
        r#"with taken as materialized (
               select * from gristmill.announcements order by id limit $1 for update skip locked
           ),
           free as materialized (
               select job.pipeline, job.source_key from gristmill.embedding_jobs as job
               where (job.pipeline, job.source_key) in (select pipeline, source_key from taken)
               order by job.id for update skip locked
           ),
           due as materialized (
               select taken.* from taken
               where (pipeline, source_key) in (select pipeline, source_key from free)
                  or not exists (select from gristmill.embedding_jobs as job
                                 where job.pipeline = taken.pipeline and job.source_key = taken.source_key)
           ),
           opened as materialized (
               select gristmill.open_jobs(due.pipeline, array_agg(source_key order by due.id), array_agg(tenant order by due.id),
                                          array_agg(run_at order by due.id), due.priority, by_person) as jobs
               from due join gristmill.pipelines as registered on registered.name = due.pipeline
               group by due.pipeline, due.priority, by_person
           ),
           gone as (
               delete from gristmill.announcements using due where announcements.id = due.id
           )
           select coalesce(sum(jobs), 0)::bigint as "opened!" from opened"#,
        limit,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(opened)
}
