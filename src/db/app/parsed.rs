//! Which rights a statement of the configuration asks its caller for. A plan names the tables that are read and written in the end, and no
//! columns; what Postgres keeps of a parsed statement, to ask for rights, names what the caller named, views included.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::config::TableName;

/// What is asked for by relation; of what is only reached through others, nothing.
pub(super) type Asked = BTreeMap<TableName, Rights>;

/// Rights on a table or view.
#[derive(Debug, Default)]
pub(super) struct Rights {
    pub(super) whole: BTreeSet<&'static str>,
    pub(super) updated: BTreeSet<String>,
}

/// A parsed statement is kept as the body of a function since Postgres 14. The rights on each relation are a set of bits, and the columns
/// one of numbers, in which the first is 8: before it is room for the system's own.
///
/// What a view reads and writes is asked of its owner, unless it is one of `security_invoker`: then its own parsed query says the rest, and
/// what is written through it goes to the columns that its own come from. Partitions are never asked about.
const ASKED: &str = r"with recursive asked (relid, rights, columns) as (
        select relation.part[1]::oid, relation.part[2]::bigint,
               array(select number::int - 7 from pg_catalog.regexp_split_to_table(pg_catalog.btrim(relation.part[3]), ' ') as number where number <> '')
        from pg_catalog.pg_proc as p
        cross join lateral pg_catalog.regexp_matches(p.prosqlbody::text,
            ':relid (\d+)[^{}]*?:requiredPerms (\d+)[^{}]*?:updatedCols \(b([ 0-9]*)\)', 'g') as relation (part)
        where p.oid = 'pg_temp.gristmill_parsed'::regproc
        union
        select below.relid, below.rights, below.columns
        from asked
        join pg_catalog.pg_class as c on c.oid = asked.relid and c.relkind = 'v'
             and exists (select from pg_catalog.pg_options_to_table(c.reloptions) where option_name = 'security_invoker' and option_value::bool)
        join pg_catalog.pg_rewrite as r on r.ev_class = c.oid and r.rulename = '_RETURN'
        cross join lateral (
            select relation.part[1]::oid as relid, relation.part[2]::bigint as rights, '{}'::int[] as columns
            from pg_catalog.regexp_matches(r.ev_action::text, ':relid (\d+)[^{}]*?:requiredPerms (\d+)', 'g') as relation (part)
            union all
            select place.part[2]::oid, asked.rights & 13,
                   coalesce(pg_catalog.array_agg(place.part[3]::int) filter (where place.part[1]::int = any (asked.columns)), '{}')
            from pg_catalog.regexp_matches(r.ev_action::text,
                ':resno (\d+) :resname .*? :ressortgroupref \d+ :resorigtbl (\d+) :resorigcol (\d+)', 'g') as place (part)
            where asked.rights & 13 <> 0 and place.part[2] <> '0' group by 1
        ) as below
    ), reached (relid) as (
        select relid from asked
        union
        select below.relid from reached cross join lateral (
            select i.inhrelid from pg_catalog.pg_inherits as i where i.inhparent = reached.relid
            union all
            select d.refobjid from pg_catalog.pg_rewrite as r
            join pg_catalog.pg_depend as d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
                 and d.refclassid = 'pg_catalog.pg_class'::regclass
            where r.ev_class = reached.relid
        ) as below (relid)
    )
    select n.nspname::text, c.relname::text, coalesce(asked.rights, 0),
           -- Whoever may update any column may lock.
           array(select a.attname::text from pg_catalog.pg_attribute as a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                 and (a.attnum = any (asked.columns) or asked.columns = '{}') order by a.attnum limit greatest(pg_catalog.cardinality(asked.columns), 1))
    from reached join pg_catalog.pg_class as c on c.oid = reached.relid join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    left join asked on asked.relid = reached.relid";

/// The bits of rights.
const RIGHTS: [(&str, i64); 4] = [("insert", 1), ("select", 2), ("update", 4), ("delete", 8)];

/// What a statement with so many parameters asks for; nothing where that cannot be told.
pub(super) async fn asked(connection: &mut PgConnection, sql: &str, parameters: usize) -> sqlx::Result<Asked> {
    let values = vec!["text"; parameters].join(", ");
    // On a line of its own: the statement may end in a comment.
    let kept = format!(
        "create function pg_temp.gristmill_parsed({values}) returns void language sql begin atomic {sql}\n; end"
    );
    let mut trial = connection.begin().await?;
    let found = match sqlx::raw_sql(AssertSqlSafe(kept)).execute(&mut *trial).await {
        Ok(_) => sqlx::query_as::<_, (String, String, i64, Vec<String>)>(ASKED).fetch_all(&mut *trial).await,
        Err(error) => Err(error),
    };
    trial.rollback().await?;
    let found = match found {
        Ok(found) => found,
        // An older Postgres, or a role that may not make such a function.
        Err(sqlx::Error::Database(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut asked = Asked::new();
    for (schema, table, bits, columns) in found {
        let rights = asked.entry(TableName { schema, table }).or_default();
        let held = RIGHTS.into_iter().filter(|(_, bit)| bits & bit != 0).map(|(right, _)| right);
        rights.whole.extend(held.filter(|right| *right != "update"));
        if bits & 4 != 0 {
            rights.updated.extend(columns);
        }
    }
    Ok(asked)
}
