//! What tables a database has that could be sources or targets: for a configuration that is to be proposed.

use sqlx::PgConnection;

use crate::config::TableName;

use super::catalog::{self, Table};

/// A table, and how it hangs together with others.
#[derive(Debug, Clone)]
pub struct Surveyed {
    pub table: Table,
    /// The columns of its primary key.
    pub key: Vec<String>,
    pub references: Vec<Reference>,
    /// Columns that some unique key holds.
    pub unique: Vec<Vec<String>>,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub columns: Vec<String>,
    pub table: TableName,
    pub foreign: Vec<String>,
}

/// The tables of the application's schemas.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    pub tables: Vec<Surveyed>,
    /// Those that this role may not read.
    pub hidden: Vec<TableName>,
}

/// Looks at every table of the application's schemas.
///
/// # Errors
/// The database is away.
pub async fn survey(connection: &mut PgConnection) -> sqlx::Result<Survey> {
    let names = sqlx::query!(
        r#"select n.nspname as "schema!", c.relname as "table!",
                  has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as "may!"
           from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^pg_'
             and n.nspname not in ('information_schema', 'gristmill', 'auth', 'storage', 'realtime', 'vault', 'supabase_migrations', 'extensions', 'cron', 'net')
           order by 1, 2"#,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut found = Survey::default();
    for row in names {
        let name = TableName { schema: row.schema, table: row.table };
        if !row.may {
            found.hidden.push(name);
            continue;
        }
        let Some(table) = catalog::table(connection, &name).await? else { continue };
        let key = sqlx::query_scalar!(
            r#"select a.attname::text as "column!" from pg_catalog.pg_index i
               cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, nth)
               join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
               where i.indrelid = $1 and i.indisprimary order by k.nth"#,
            table.oid,
        )
        .fetch_all(&mut *connection)
        .await?;
        let references = references(connection, &table).await?;
        let unique = catalog::unique_keys(connection, &table).await?.into_iter().map(|key| key.columns).collect();
        found.tables.push(Surveyed { table, key, references, unique });
    }
    Ok(found)
}

async fn references(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Vec<Reference>> {
    let rows = sqlx::query!(
        r#"select n.nspname as "schema!", c.relname as "table!",
                  (select array_agg(a.attname::text order by k.nth) from unnest(f.conkey) with ordinality as k (attnum, nth)
                   join pg_catalog.pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.attnum) as "columns!",
                  (select array_agg(a.attname::text order by k.nth) from unnest(f.confkey) with ordinality as k (attnum, nth)
                   join pg_catalog.pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.attnum) as "foreign_columns!"
           from pg_catalog.pg_constraint f
           join pg_catalog.pg_class c on c.oid = f.confrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           where f.contype = 'f' and f.conrelid = $1 order by f.conname"#,
        table.oid,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Reference {
            columns: row.columns,
            table: TableName { schema: row.schema, table: row.table },
            foreign: row.foreign_columns,
        })
        .collect())
}

/// The word a version column mostly holds; none where the table is empty.
///
/// # Errors
/// The database is away.
pub async fn commonest_word(
    connection: &mut PgConnection,
    table: &Table,
    column: &str,
) -> sqlx::Result<Option<String>> {
    let column = super::quote(column);
    let statement = format!(
        "select word from (select {column}::text as word from {} where {column} is not null limit 10000) as sample \
         group by word order by count(*) desc, word limit 1",
        table.sql()
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_optional(connection).await
}

/// Whether a function of that signature is there: `auth.uid()`.
///
/// # Errors
/// The database is away.
pub async fn has_function(connection: &mut PgConnection, signature: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select to_regprocedure($1) is not null as "there!""#, signature).fetch_one(connection).await
}

/// The buckets of Supabase Storage, as far as this role may see them; none where this database has no such storage.
///
/// # Errors
/// The database is away.
pub async fn buckets(connection: &mut PgConnection) -> sqlx::Result<Option<Vec<String>>> {
    let storage = sqlx::query!(
        r#"select to_regclass('storage.buckets') is not null as "there!",
                  coalesce(has_table_privilege(to_regclass('storage.buckets'), 'select'), false) as "may!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !storage.may {
        return Ok(storage.there.then(Vec::new));
    }
    sqlx::query_scalar("select id::text from storage.buckets order by 1").fetch_all(connection).await.map(Some)
}
