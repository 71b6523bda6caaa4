//! The optional view of a pipeline's job states for frontends: whoever asks sees the states of the source rows that the source's own
//! row security shows him, and no other.

use sqlx::PgConnection;

use super::catalog::{self, Column};
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
    ///
    /// # Errors
    /// The key is of a type that reads differently from session to session.
    pub fn of(plan: &Plan, roles: &[String]) -> Result<Self, String> {
        if let Some(column) = plan.key.iter().find(|column| !reads_the_same(column)) {
            return Err(format!(
                "{} is {}, whose text depends on a session's settings: such rows cannot be joined to their jobs in a view",
                column.name, column.type_name
            ));
        }
        let name = &plan.pipeline.name;
        let visible = format!("gristmill.{}", quote(&format!("visible_{name}")));
        let status = format!("gristmill.{}", quote(&view_name(name)));
        let has = |role: &&str| roles.iter().any(|known| known == role);
        let readers: Vec<&str> = READERS.into_iter().filter(has).collect();
        let usual: Vec<&str> = ["public"].into_iter().chain(USUAL.into_iter().filter(has)).collect();

        let mut install = Self::drop(&visible, &status);
        // Asked with the rights and under the row security of whoever asks, also from within the other view, which is asked with its
        // owner's: so nobody needs a right to our jobs, and their rows are reached through the source's alone.
        install.push(format!(
            "create view {visible} with (security_invoker = true) as select {}, {} as gm_key from {} as source",
            plan.key_list("source"),
            plan.key_json("source"),
            plan.source,
        ));
        // A barrier, or a function in a user's own condition would be shown rows that the join leaves out.
        install.push(format!(
            "create view {status} with (security_barrier = true) as select {} from {visible} as seen \
             join gristmill.embedding_jobs as job on job.pipeline = {} and job.source_key = seen.gm_key",
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
        let mut remove = Self::drop(&visible, &status);
        if has(&"authenticated") {
            remove.push(CLOSE.to_owned());
        }
        Ok(Self { install, remove })
    }

    fn drop(visible: &str, status: &str) -> Vec<String> {
        [status, visible].map(|view| format!("drop view if exists {view}")).to_vec()
    }
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

/// Whether a value of this type has one text, whatever is set.
fn reads_the_same(column: &Column) -> bool {
    const TYPES: [&str; 9] = ["uuid", "int2", "int4", "int8", "numeric", "text", "varchar", "bpchar", "bool"];
    column.is_enum || column.type_schema == "pg_catalog" && TYPES.contains(&column.type_name.as_str())
}

/// The statements for one pipeline, with the roles of this server.
///
/// # Errors
/// The outer one: the database is away. The inner one: see [`ViewSet::of`].
pub async fn view_set(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<Result<ViewSet, String>> {
    let roles = catalog::roles(connection, &USUAL).await?;
    Ok(ViewSet::of(plan, &roles))
}

/// Runs the statements, in one transaction.
///
/// # Errors
/// This role may not make views in schema gristmill or drop them, or something of the application hangs on them.
pub async fn run(connection: &mut PgConnection, statements: &[String]) -> sqlx::Result<()> {
    triggers::run(connection, statements).await
}
