//! The optional view of a pipeline's job states for frontends: whoever asks sees the states of the source rows that the source's own
//! row security shows him, and no other.

use sqlx::PgConnection;

use super::catalog;
use super::plan::Plan;
use super::{literal, quote, triggers};

/// A pipeline's view, as SQL.
#[derive(Debug, Clone)]
pub struct ViewSet {
    pub install: Vec<String>,
    pub remove: Vec<String>,
}

/// Who may look, where there are such roles.
const READERS: [&str; 2] = ["authenticated", "service_role"];
/// Roles that a database may give every new view to.
const USUAL: [&str; 3] = ["anon", "authenticated", "service_role"];

/// What is shown of a job beside its row's key.
const SHOWN: [(&str, &str); 9] = [
    ("state", "job.state"),
    ("error_kind", "job.error_kind"),
    ("reason", "job.reason"),
    ("chunks", "job.chunks"),
    ("tokens", "job.tokens"),
    ("revision", "job.revision"),
    ("opened_at", "job.opened_at"),
    ("next_try_at", "case when job.state = 'waiting' then nullif(job.run_at, 'infinity') end"),
    ("finished_at", "job.finished_at"),
];

impl ViewSet {
    /// The statements for one pipeline; `roles` are those of the usual ones that this server has.
    fn of(plan: &Plan, roles: &[String]) -> Self {
        let name = &plan.pipeline.name;
        let (visible, status) = views_of(name);
        let has = |role: &&str| roles.iter().any(|known| known == role);
        let readers: Vec<&str> = READERS.into_iter().filter(has).collect();
        let usual: Vec<&str> = ["public"].into_iter().chain(USUAL.into_iter().filter(has)).collect();
        let mut job_key = "gm_key".to_owned();
        while plan.key.iter().any(|column| column.name == job_key) {
            job_key.push('_');
        }

        let mut install = drop(&visible, &status);
        // Asked with the rights and under the row security of whoever asks, also from within the other view, which is asked with its
        // owner's: so nobody needs a right to our jobs, and their rows are reached through the source's alone.
        install.push(format!(
            "create view {visible} with (security_invoker = true) as select {}, {} as {job_key} from {} as source",
            plan.key_list("source"),
            plan.key_json("source"),
            plan.source,
        ));
        // A barrier, or a function in a user's own condition would be shown rows that the join leaves out.
        install.push(format!(
            "create view {status} with (security_barrier = true) as select {} from {visible} as seen \
             join gristmill.embedding_jobs as job on job.pipeline = {} and job.source_key = seen.{job_key}",
            columns(plan).join(", "),
            literal(name),
        ));
        install.push(format!("revoke all on {visible}, {status} from {}", usual.join(", ")));
        if !readers.is_empty() {
            install.push(format!("grant select on {status} to {}", readers.join(", ")));
        }
        if has(&"authenticated") {
            install.push("grant usage on schema gristmill to authenticated".to_owned());
        }
        Self { install, remove: removal(name, roles) }
    }
}

/// The two views of a pipeline, quoted.
fn views_of(pipeline: &str) -> (String, String) {
    [format!("visible_{pipeline}"), view_name(pipeline)].map(|name| format!("gristmill.{}", quote(&name))).into()
}

fn drop(visible: &str, status: &str) -> Vec<String> {
    [status, visible].map(|view| format!("drop view if exists {view}")).to_vec()
}

fn removal(pipeline: &str, roles: &[String]) -> Vec<String> {
    let (visible, status) = views_of(pipeline);
    let mut remove = drop(&visible, &status);
    if roles.iter().any(|role| role == "authenticated") {
        remove.push(CLOSE.to_owned());
    }
    remove
}

/// With the last view goes the right to look into the schema.
const CLOSE: &str = "do $$ begin if not exists (select from pg_catalog.pg_views where schemaname = 'gristmill' and viewname like 'status\\_%') \
    then revoke usage on schema gristmill from authenticated; end if; end $$";

/// What a pipeline's view is called, in our schema.
pub fn view_name(pipeline: &str) -> String {
    format!("status_{pipeline}")
}

fn columns(plan: &Plan) -> Vec<String> {
    let is_ours = |name: &str| SHOWN.iter().any(|(ours, _)| *ours == name);
    let key = plan.key.iter().map(|column| {
        let shown = if is_ours(&column.name) { quote(&format!("source_{}", column.name)) } else { column.sql() };
        format!("seen.{} as {shown}", column.sql())
    });
    key.chain(SHOWN.iter().map(|(name, value)| format!("{value} as {name}"))).collect()
}

/// The types whose values have one text, whatever is set.
const SAME: [&str; 13] =
    ["uuid", "int2", "int4", "int8", "numeric", "text", "varchar", "bpchar", "bool", "name", "inet", "cidr", "macaddr"];

/// The statements for one pipeline, with the roles of this server.
///
/// # Errors
/// The outer one: the database is away. The inner one: the key is of a type that reads differently from session to session, as times do
/// by `TimeZone` and `DateStyle`: a reader's text of it would not be the one that the job is known by.
pub async fn view_set(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<Result<ViewSet, String>> {
    for column in &plan.key {
        let base = catalog::base_type(connection, column.type_oid).await?;
        if column.is_enum || base.is_enum || base.schema == "pg_catalog" && SAME.contains(&base.name.as_str()) {
            continue;
        }
        let times = ["date", "timestamp", "timestamptz", "timetz", "interval"].contains(&base.name.as_str());
        let settings = if times { "TimeZone, DateStyle and IntervalStyle" } else { "settings" };
        return Ok(Err(format!(
            "{} is {}, whose text may depend on a session's {settings}: a view cannot find its jobs by it",
            column.name, column.type_name
        )));
    }
    Ok(Ok(ViewSet::of(plan, &catalog::roles(connection, &USUAL).await?)))
}

/// The statements that remove a pipeline's views, whether a configuration knows it or not.
///
/// # Errors
/// The database is away.
pub async fn view_removal(connection: &mut PgConnection, pipeline: &str) -> sqlx::Result<Vec<String>> {
    Ok(removal(pipeline, &catalog::roles(connection, &USUAL).await?))
}

/// The pipelines that have views here, those that no configuration knows any more included.
///
/// # Errors
/// The database is away.
pub async fn with_views(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select substr(status.viewname, 8) as "pipeline!" from pg_catalog.pg_views as status
           join pg_catalog.pg_views as visible on visible.schemaname = status.schemaname
                and visible.viewname = 'visible_' || substr(status.viewname, 8)
           where status.schemaname = 'gristmill' and status.viewname like 'status\_%' order by 1"#,
    )
    .fetch_all(connection)
    .await
}

/// Runs the statements, in one transaction.
///
/// # Errors
/// This role may not make views in schema gristmill or drop them, or something of the application hangs on them.
pub async fn run(connection: &mut PgConnection, statements: &[String]) -> sqlx::Result<()> {
    triggers::run(connection, statements).await
}
