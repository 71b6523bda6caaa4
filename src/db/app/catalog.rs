//! What `pg_catalog` says about the application's tables.

use sqlx::PgConnection;

use crate::config::TableName;

use super::quote;

/// A table of the application.
#[derive(Debug, Clone)]
pub struct Table {
    pub oid: sqlx::postgres::types::Oid,
    pub name: TableName,
    pub columns: Vec<Column>,
    /// Row security is on and this role is not exempt: rows may be hidden.
    pub hides_rows: bool,
    pub may_select: bool,
    pub may_insert: bool,
    pub may_update: bool,
    /// Of any column: that is what locking a row asks for.
    pub may_lock: bool,
    pub may_delete: bool,
    pub may_trigger: bool,
    /// Row security is on.
    pub secured: bool,
}

/// A column of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    pub array_oid: u32,
    pub type_schema: String,
    pub type_name: String,
    /// `atttypmod`: the dimensions of a vector, -1 where none are said.
    pub modifier: i32,
    pub not_null: bool,
    pub has_default: bool,
    /// Computed by the database: never written.
    pub generated: bool,
    pub is_enum: bool,
    pub may_update: bool,
}

impl Table {
    /// The name, quoted.
    pub fn sql(&self) -> String {
        table_sql(&self.name)
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns' names, for messages.
    pub fn column_names(&self) -> String {
        self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Column {
    /// The name, quoted.
    pub fn sql(&self) -> String {
        quote(&self.name)
    }

    /// The type, qualified and without modifier: a cast to it cuts nothing.
    pub fn type_sql(&self) -> String {
        format!("{}.{}", quote(&self.type_schema), quote(&self.type_name))
    }

    /// Whether JSON shows it as something other than a string.
    pub fn is_plain_json(&self) -> bool {
        self.type_schema == "pg_catalog"
            && ["int2", "int4", "int8", "float4", "float8", "numeric", "bool"].contains(&self.type_name.as_str())
    }

    /// The most characters it takes, where its type says.
    pub fn longest(&self) -> Option<usize> {
        let limited = self.type_schema == "pg_catalog" && ["varchar", "bpchar"].contains(&self.type_name.as_str());
        // The modifier counts the four bytes of a length as well.
        usize::try_from(self.modifier).ok().filter(|_| limited).and_then(|modifier| modifier.checked_sub(4))
    }

    pub fn is_jsonb(&self) -> bool {
        self.type_schema == "pg_catalog" && self.type_name == "jsonb"
    }
}

/// `schema.table`, quoted.
pub fn table_sql(name: &TableName) -> String {
    format!("{}.{}", quote(&name.schema), quote(&name.table))
}

/// The schema pgvector lives in, where it is installed.
pub async fn vector_schema(connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
    )
    .fetch_optional(connection)
    .await
}

/// Who we are to the database, and which of these schemas it may not use.
pub async fn role(connection: &mut PgConnection, schemas: &[String]) -> sqlx::Result<(String, Vec<String>)> {
    let role = sqlx::query!(
        r#"select current_user::text as "name!",
                  coalesce((select array_agg(distinct nspname::text) from pg_catalog.pg_namespace
                            where nspname = any ($1) and not has_schema_privilege(oid, 'usage')), '{}') as "closed!""#,
        schemas,
    )
    .fetch_one(connection)
    .await?;
    Ok((role.name, role.closed))
}

/// pgvector's version, where it is installed.
pub async fn vector_version(connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("select extversion from pg_catalog.pg_extension where extname = 'vector'")
        .fetch_optional(connection)
        .await
}

/// Reads a table; none where there is none of that name (or this role may not use its schema).
pub async fn table(connection: &mut PgConnection, name: &TableName) -> sqlx::Result<Option<Table>> {
    let found = sqlx::query!(
        r#"select c.oid, (c.relrowsecurity and not pg_catalog.pg_has_role(c.relowner, 'usage')
                   and not (select rolbypassrls or rolsuper from pg_catalog.pg_roles where rolname = current_user)
                   or c.relrowsecurity and c.relforcerowsecurity
                   and not (select rolbypassrls or rolsuper from pg_catalog.pg_roles where rolname = current_user)) as "hides_rows!",
                  has_table_privilege(c.oid, 'select') as "may_select!", has_table_privilege(c.oid, 'insert') as "may_insert!",
                  has_table_privilege(c.oid, 'update') as "may_update!", has_any_column_privilege(c.oid, 'update') as "may_lock!", has_table_privilege(c.oid, 'delete') as "may_delete!",
                  has_table_privilege(c.oid, 'trigger') as "may_trigger!", c.relrowsecurity as secured
           from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')"#,
        name.schema,
        name.table,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(found) = found else { return Ok(None) };
    let columns = sqlx::query!(
        r#"select a.attname as "name!", t.oid as type_oid, t.typarray as array_oid, tn.nspname as "type_schema!", t.typname as "type_name!",
                  a.atttypmod as modifier, (a.attnotnull or t.typnotnull) as "not_null!",
                  (a.atthasdef or a.attidentity <> '' or t.typdefault is not null) as "has_default!",
                  (a.attgenerated <> '' or a.attidentity = 'a') as "generated!", (t.typtype = 'e') as "is_enum!",
                  has_column_privilege(a.attrelid, a.attnum, 'update') as "may_update!"
           from pg_catalog.pg_attribute a
           join pg_catalog.pg_type t on t.oid = a.atttypid join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
           where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum"#,
        found.oid,
    )
    .fetch_all(&mut *connection)
    .await?;
    Ok(Some(Table {
        oid: found.oid,
        name: name.clone(),
        hides_rows: found.hides_rows,
        may_select: found.may_select,
        may_insert: found.may_insert,
        may_update: found.may_update,
        may_lock: found.may_lock,
        may_delete: found.may_delete,
        may_trigger: found.may_trigger,
        secured: found.secured,
        columns: columns
            .into_iter()
            .map(|column| Column {
                name: column.name,
                type_oid: column.type_oid.0,
                array_oid: column.array_oid.0,
                type_schema: column.type_schema,
                type_name: column.type_name,
                modifier: column.modifier,
                not_null: column.not_null,
                has_default: column.has_default,
                generated: column.generated,
                is_enum: column.is_enum,
                may_update: column.may_update,
            })
            .collect(),
    }))
}

/// The sequences that defaults of a table's columns draw from, quoted, and whether this role may use them; those of identity columns
/// ask for no right.
pub async fn sequences(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Vec<(String, bool)>> {
    let found = sqlx::query!(
        r#"select distinct quote_ident(n.nspname) || '.' || quote_ident(s.relname) as "name!",
                           has_sequence_privilege(s.oid, 'usage') as "may_use!"
           from pg_catalog.pg_attrdef d
           join pg_catalog.pg_depend p on p.classid = 'pg_catalog.pg_attrdef'::regclass and p.objid = d.oid
                                      and p.refclassid = 'pg_catalog.pg_class'::regclass
           join pg_catalog.pg_class s on s.oid = p.refobjid and s.relkind = 'S' join pg_catalog.pg_namespace n on n.oid = s.relnamespace
           where d.adrelid = $1 order by 1"#,
        table.oid,
    )
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|row| (row.name, row.may_use)).collect())
}

/// The role that owns a table.
pub async fn owner_of_table(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<String> {
    let query = "select pg_get_userbyid(relowner)::text from pg_class \
                 where relname = $1 and relnamespace = (select oid from pg_namespace where nspname = $2)";
    sqlx::query_scalar(query).bind(&table.table).bind(&table.schema).fetch_one(connection).await
}

/// A unique index.
#[derive(Debug, Clone)]
pub struct UniqueKey {
    pub columns: Vec<String>,
    /// It holds for every row, from the moment on it was made.
    pub is_whole: bool,
    /// It is asked with each row, not at the end of a transaction.
    pub is_immediate: bool,
}

/// The unique keys of a table that are about columns alone.
pub async fn unique_keys(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Vec<UniqueKey>> {
    sqlx::query_as!(
        UniqueKey,
        r#"select array_agg(a.attname::text order by k.nth) as "columns!", i.indpred is null and i.indisvalid as "is_whole!",
                  i.indimmediate as is_immediate
           from pg_catalog.pg_index i
           cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, nth)
           join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where i.indrelid = $1 and i.indisunique and i.indexprs is null and k.nth <= i.indnkeyatts
           group by i.indexrelid, i.indpred is null, i.indisvalid, i.indimmediate"#,
        table.oid,
    )
    .fetch_all(connection)
    .await
}

/// A foreign key of a table.
#[derive(Debug)]
pub struct ForeignKey {
    pub columns: Vec<String>,
    pub references: TableName,
    /// The columns it refers to, and their types, qualified.
    pub referenced: Vec<String>,
    pub types: Vec<String>,
    /// Whether its columns have the types of those they refer to.
    pub same_types: bool,
    /// Whether this role may lock the rows it refers to, and sees all of them.
    pub may_lock: bool,
}

/// The foreign keys of a table.
pub async fn foreign_keys(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Vec<ForeignKey>> {
    let found = sqlx::query!(
        r#"select n.nspname as "schema!", f.relname as "table!", array_agg(a.attname::text order by k.nth) as "columns!",
                  array_agg(r.attname::text order by k.nth) as "referenced!",
                  array_agg(quote_ident(tn.nspname) || '.' || quote_ident(t.typname) order by k.nth) as "types!",
                  bool_and(a.atttypid = r.atttypid) as "same_types!",
                  has_schema_privilege(n.oid, 'usage') and has_any_column_privilege(f.oid, 'update')
                      and bool_and(has_column_privilege(f.oid, r.attnum, 'select'))
                      and (not f.relrowsecurity or (select rolbypassrls or rolsuper from pg_catalog.pg_roles where rolname = current_user)
                           or (not f.relforcerowsecurity and pg_catalog.pg_has_role(f.relowner, 'usage'))) as "may_lock!"
           from pg_catalog.pg_constraint c
           join pg_catalog.pg_class f on f.oid = c.confrelid join pg_catalog.pg_namespace n on n.oid = f.relnamespace
           cross join unnest(c.conkey, c.confkey) with ordinality as k (attnum, refnum, nth)
           join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.attnum
           join pg_catalog.pg_attribute r on r.attrelid = c.confrelid and r.attnum = k.refnum
           join pg_catalog.pg_type t on t.oid = r.atttypid join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
           where c.conrelid = $1 and c.contype = 'f' and c.conparentid = 0
           group by c.oid, n.oid, n.nspname, f.oid, f.relname, f.relrowsecurity, f.relforcerowsecurity, f.relowner
           order by n.nspname, f.relname, c.oid"#,
        table.oid,
    )
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|key| ForeignKey {
            columns: key.columns,
            references: TableName { schema: key.schema, table: key.table },
            referenced: key.referenced,
            types: key.types,
            same_types: key.same_types,
            may_lock: key.may_lock,
        })
        .collect())
}

/// The CHECK constraints that are about one column alone: their names and conditions.
pub async fn checks(connection: &mut PgConnection, table: &Table, column: &str) -> sqlx::Result<Vec<(String, String)>> {
    let found = sqlx::query!(
        r#"select c.conname::text as "name!", pg_catalog.pg_get_expr(c.conbin, c.conrelid) as "condition!"
           from pg_catalog.pg_constraint c
           join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and array[a.attnum] = c.conkey
           where c.conrelid = $1 and c.contype = 'c' and a.attname = $2 order by c.conname"#,
        table.oid,
        column,
    )
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|check| (check.name, check.condition)).collect())
}

/// The words of an enum type.
pub async fn enum_words(connection: &mut PgConnection, type_oid: u32) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select enumlabel::text as "word!" from pg_catalog.pg_enum where enumtypid = $1 order by enumsortorder"#,
        sqlx::postgres::types::Oid(type_oid),
    )
    .fetch_all(connection)
    .await
}

/// What a type is in the end.
pub struct BaseType {
    pub schema: String,
    pub name: String,
    pub is_enum: bool,
}

/// The type itself, or the one below its domains.
pub async fn base_type(connection: &mut PgConnection, oid: u32) -> sqlx::Result<BaseType> {
    sqlx::query_as!(
        BaseType,
        r#"with recursive below (oid, base) as (
               select oid, typbasetype from pg_catalog.pg_type where oid = $1
               union all select t.oid, t.typbasetype from below join pg_catalog.pg_type t on t.oid = below.base
           )
           select n.nspname as "schema!", t.typname as "name!", t.typtype = 'e' as "is_enum!"
           from below join pg_catalog.pg_type t using (oid) join pg_catalog.pg_namespace n on n.oid = t.typnamespace
           where below.base = 0"#,
        sqlx::postgres::types::Oid(oid),
    )
    .fetch_one(connection)
    .await
}

/// A type's name, qualified and quoted.
pub async fn type_sql(connection: &mut PgConnection, oid: u32) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r#"select quote_ident(n.nspname) || '.' || quote_ident(t.typname) as "type!"
           from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace where t.oid = $1"#,
        sqlx::postgres::types::Oid(oid),
    )
    .fetch_optional(connection)
    .await
}

/// Which of these roles there are.
pub async fn roles(connection: &mut PgConnection, names: &[&str]) -> sqlx::Result<Vec<String>> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    sqlx::query_scalar!(
        r#"select rolname::text as "name!" from pg_catalog.pg_roles where rolname = any ($1) order by 1"#,
        &names,
    )
    .fetch_all(connection)
    .await
}
