//! The optional triggers of a pipeline: they announce changes at once, cost the application one statement per statement, and
//! never make it fail.

use sqlx::{AssertSqlSafe, PgConnection};

use super::plan::Plan;
use super::{literal, quote};
use crate::db::TEXT_FORMAT;

/// A pipeline's triggers and their functions, as SQL.
#[derive(Debug, Clone)]
pub struct TriggerSet {
    pub install: Vec<String>,
    pub remove: Vec<String>,
}

/// What is dropped if it exists need not be told of where it does not.
const QUIET: &str = "set local client_min_messages = warning";

const EVENTS: [&str; 3] = ["insert", "update", "delete"];

impl TriggerSet {
    /// The statements for one pipeline.
    pub fn of(plan: &Plan) -> Self {
        let name = &plan.pipeline.name;
        let mut install = Vec::new();
        let mut remove = Vec::new();
        for event in EVENTS {
            let function = format!("gristmill.{}", quote(&function_name(name, event)));
            let trigger = quote(&trigger_name(name, event));
            install.push(function_sql(plan, &function, event));
            install.push(format!("revoke all on function {function}() from public"));
            install.push(format!("drop trigger if exists {trigger} on {}", plan.source));
            install.push(format!(
                "create trigger {trigger} after {event} on {} referencing {} for each statement execute function {function}()",
                plan.source,
                transition(event),
            ));
            remove.push(format!("drop trigger if exists {trigger} on {}", plan.source));
            remove.push(format!("drop function if exists {function}()"));
        }
        Self { install, remove }
    }

    /// The statements as one script, in one transaction.
    pub fn script(statements: &[String]) -> String {
        let statements: String = statements.iter().map(|statement| format!("{statement};\n")).collect();
        format!("begin;\n{QUIET};\n{statements}commit;\n")
    }
}

fn trigger_name(pipeline: &str, event: &str) -> String {
    format!("gristmill_{pipeline}_{event}")
}

fn function_name(pipeline: &str, event: &str) -> String {
    format!("on_{pipeline}_{event}")
}

fn transition(event: &str) -> &'static str {
    match event {
        "insert" => "new table as gm_new",
        "delete" => "old table as gm_old",
        _ => "old table as gm_old new table as gm_new",
    }
}

/// One function: deaf to its own pipeline's writes, pinned so that keys read the same as the worker's, and swallowing its own
/// errors: the sweep catches up. `others` does not catch a cancellation.
fn function_sql(plan: &Plan, function: &str, event: &str) -> String {
    let text_format: String = TEXT_FORMAT.iter().map(|(name, value)| format!("set {name} = {value} ")).collect();
    let source = source_of(plan, event);
    format!(
        "create or replace function {function}() returns trigger language plpgsql security definer \
         set search_path = '' {text_format}set enable_nestloop = off as {tag}{source}{tag}",
        tag = dollar_quote(&source),
    )
}

/// A dollar quote that a text does not hold: names and expressions of the application's may hold any.
fn dollar_quote(text: &str) -> String {
    let tags = (0_u32..).map(|nth| if nth == 0 { "$gristmill$".to_owned() } else { format!("$gristmill_{nth}$") });
    tags.into_iter().find(|tag| !text.contains(tag.as_str())).unwrap_or_default()
}

/// A function's source, by which an installed one is known. Columns win over PL/pgSQL's own variables: an application may call one
/// `found` or `new`.
fn source_of(plan: &Plan, event: &str) -> String {
    let name = literal(&plan.pipeline.name);
    let (new, old) = (alone(plan, "new"), alone(plan, "old"));
    let of = |new: &str, old: &str| match event {
        "insert" if plan.needs.is_some() => announce_needs(&name, &rows_of(plan, new), "new_row.asks"),
        "insert" => announce(&name, &rows_of(plan, new), "new_row", "new_row.asks"),
        "delete" => announce(&name, &rows_of(plan, old), "new_row", "new_row.in_set"),
        _ => update_body(plan, &name, new, old),
    };
    format!(
        "\n\
         #variable_conflict use_column\n\
         declare gm_pair record;\n\
         begin\n\
             if current_setting('gristmill.writer', true) = {name} then return null; end if;\n\
             begin\n\
                 {whole}\n\
                 return null;\n\
             exception\n\
                 -- A row that cannot be read must not silence its neighbours.\n\
                 when data_exception or cardinality_violation or plpgsql_error then null;\n\
                 when others then\n\
                     raise warning 'gristmill could not announce rows of %: %', {table}, sqlerrm;\n\
                     return null;\n\
             end;\n\
             for gm_pair in {pairs} loop\n\
                 begin\n\
                     {one}\n\
                 exception when others then\n\
                     -- The attempt of its own job says what is wrong with it.\n\
                     perform gristmill.open_jobs({name}, array[gm_pair.new_key, gm_pair.old_key], array['', ''], \
                         array[null, null]::timestamptz[], 0, false);\n\
                 end;\n\
             end loop;\n\
             return null;\n\
         exception when others then\n\
             raise warning 'gristmill could not announce rows of %: %', {table}, sqlerrm;\n\
             return null;\n\
         end\n",
        whole = of("gm_new", "gm_old"),
        pairs = pairs(plan, event),
        one = of(&new, &old),
        table = literal(&plan.source_table.name.to_string()),
    )
}

/// The rows of a statement, each beside what it was before.
fn pairs(plan: &Plan, event: &str) -> String {
    let side = |which: &str| {
        let relation = format!("gm_{which}");
        let (row, key) = (format!("row({relation}.*)::{}", plan.source), plan.key_json(&relation));
        format!(
            "not ({relation} is null) as is_{which}, {row} as {which}_row, case when not ({relation} is null) then {key} end as {which}_key"
        )
    };
    let none =
        |which: &str| format!("false as is_{which}, null::{} as {which}_row, null::jsonb as {which}_key", plan.source);
    match event {
        "insert" => format!("select {}, {} from gm_new", side("new"), none("old")),
        "delete" => format!("select {}, {} from gm_old", none("new"), side("old")),
        _ => format!(
            "select {}, {} from gm_new full join gm_old on {} = {}",
            side("new"),
            side("old"),
            plan.key_json("gm_new"),
            plan.key_json("gm_old"),
        ),
    }
}

/// One row of a pair, as a relation.
fn alone(plan: &Plan, which: &str) -> String {
    format!("(select (gm_pair.{which}_row::{}).* where gm_pair.is_{which})", plan.source)
}

/// What the worker would read of each row: its key, whether it is in the set, whether it asks, and its content.
fn rows_of(plan: &Plan, relation: &str) -> String {
    let asks = plan.needs.as_ref().map_or_else(|| plan.when.clone(), |needs| format!("{} and {needs}", plan.when));
    let order = plan.pipeline.source.order.as_ref().map_or_else(
        || "null::timestamptz".to_owned(),
        |column| format!("(source.{}::text)::timestamptz", quote(column)),
    );
    format!(
        "select {key} as key, {when} as in_set, {asks} as asks, {tenant} as tenant, {order} as ordered, {fingerprint} as content from {from}",
        key = plan.key_json("source"),
        when = plan.when,
        tenant = plan.tenant,
        fingerprint = plan.fingerprint,
        from = plan.relation(relation),
    )
}

/// Announces rows that ask for themselves and for no other reason.
fn announce_needs(name: &str, rows: &str, condition: &str) -> String {
    format!(
        "perform gristmill.open_needed({name}, array_agg(new_row.key), array_agg(new_row.tenant), array_agg(new_row.ordered)) \
         from ({rows}) as new_row where {condition} having count(*) > 0;"
    )
}

fn announce(name: &str, rows: &str, alias: &str, condition: &str) -> String {
    format!(
        "perform gristmill.open_jobs({name}, array_agg({alias}.key), array_agg({alias}.tenant), array_agg({alias}.ordered), 0, false) \
         from ({rows}) as {alias} where {condition} having count(*) > 0;"
    )
}

/// An update announces rows whose content changed, that began to ask, that entered or left the set, or whose key is new; and the
/// old key of a row whose key changed.
fn update_body(plan: &Plan, name: &str, new: &str, old: &str) -> String {
    let changed = if plan.pipeline.source.reopen_on_change {
        "(new_row.content, new_row.tenant) is distinct from (old_row.content, old_row.tenant)"
    } else {
        "false"
    };
    let began = "(new_row.asks and not coalesce(old_row.asks, false))";
    let left = "(coalesce(old_row.in_set, false) and not new_row.in_set)";
    let told = format!("((new_row.in_set and {changed} and old_row.key is not null) or {left})");
    // A row that asks for itself is told apart; one that enters the set is not.
    let condition = if plan.needs.is_some() { told.clone() } else { format!("({told} or {began})") };
    let joined = format!(
        "select new_row.key, new_row.tenant, new_row.ordered from ({}) as new_row left join ({}) as old_row on old_row.key = new_row.key \
         where {condition} \
         union all \
         select old_row.key, old_row.tenant, old_row.ordered from ({}) as old_row \
         where old_row.in_set and not exists (select from ({}) as new_row where new_row.key = old_row.key)",
        rows_of(plan, new),
        rows_of(plan, old),
        rows_of(plan, old),
        rows_of(plan, new),
    );
    let needed = format!(
        "select new_row.* from ({}) as new_row left join ({}) as old_row on old_row.key = new_row.key where {began} and not {told}",
        rows_of(plan, new),
        rows_of(plan, old),
    );
    let needed = if plan.needs.is_some() { announce_needs(name, &needed, "true") } else { String::new() };
    format!("{}\n{needed}", announce(name, &joined, "asked", "true"))
}

/// A query over all that the triggers read.
pub(super) fn read_by(plan: &Plan) -> String {
    rows_of(plan, &plan.source)
}

/// Plans what the triggers would read, under the empty search path they run with: as they swallow their own errors, a wrong
/// expression would never show.
///
/// # Errors
/// The expression that does not hold there, or the database is away.
pub async fn try_out(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<()> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    // Planned, never run: rows that are hidden from this role are no matter.
    sqlx::raw_sql("set local search_path = ''; set local row_security = on").execute(&mut *transaction).await?;
    let statement = format!("explain {}", read_by(plan));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    transaction.rollback().await
}

/// Installs a pipeline's triggers, in one transaction.
///
/// # Errors
/// This role may not create triggers on the table.
pub async fn install(connection: &mut PgConnection, set: &TriggerSet) -> sqlx::Result<()> {
    run(connection, &set.install).await
}

/// Removes them.
///
/// # Errors
/// Who may create triggers may not be allowed to drop them: then the owner has to run the statements.
pub async fn remove(connection: &mut PgConnection, set: &TriggerSet) -> sqlx::Result<()> {
    run(connection, &set.remove).await
}

pub(super) async fn run(connection: &mut PgConnection, statements: &[String]) -> sqlx::Result<()> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    sqlx::raw_sql(QUIET).execute(&mut *transaction).await?;
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Which events of a pipeline have their trigger, as the configuration is today: one that was installed for another condition or
/// other content does not count.
///
/// # Errors
/// The database is away.
pub async fn installed(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for event in EVENTS {
        let there = sqlx::query_scalar!(
            r#"select exists (
                   select from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
                   where t.tgrelid = $1 and t.tgname = $2 and t.tgenabled <> 'D' and p.prosrc = $3
               ) as "there!""#,
            plan.source_table.oid,
            trigger_name(&plan.pipeline.name, event),
            source_of(plan, event),
        )
        .fetch_one(&mut *connection)
        .await?;
        if there {
            found.push(event);
        }
    }
    Ok(found)
}
