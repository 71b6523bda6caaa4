//! The tables of a shape, and the pipeline that a person would write for them.

use std::fmt::Write as _;

use super::names::{braces, key, literal, sql, value, written};
use super::shape::{Chunks, Noticed, Shape, Target, Tenant, When};

/// What the application calls everybody's rows.
pub const EVERYBODY: &str = "it's {everybody}";
/// The word of the version column.
pub const VERSION: &str = "v'1 \"x\"";

impl Shape {
    /// `TYPES.x` as the type of this shape.
    pub fn typed(&self, written: &str) -> String {
        match written.split_once("TYPES.") {
            None => written.to_owned(),
            Some((before, name)) => {
                format!("{before}{}.{}", sql(&self.names.types_schema), sql(&format!("{name} {{\"}}.t")))
            }
        }
    }

    pub fn source(&self) -> String {
        format!("{}.{}", sql(&self.names.source_schema), sql(&self.names.source))
    }

    /// Where the vectors are.
    pub fn target(&self) -> String {
        match self.target {
            Target::Row => self.source(),
            Target::Chunks(_) | Target::Created { .. } => {
                format!("{}.{}", sql(&self.names.target_schema), sql(&self.names.target))
            }
        }
    }

    pub fn log(&self) -> String {
        format!("{}.{}", sql(&self.names.types_schema), sql(&self.names.log))
    }

    /// The application's own job table.
    pub fn queue(&self) -> String {
        format!("{}.{}", sql(&self.names.target_schema), sql(&self.names.queue))
    }

    fn people(&self) -> String {
        format!("{}.{}", sql(&self.names.types_schema), sql(&self.names.people))
    }

    /// The type of the vectors, in the schema that pgvector is in.
    fn vector(&self, pgvector: &str) -> String {
        let name = if self.half { "halfvec" } else { "vector" };
        let length = if self.declared { format!("({})", self.dimensions) } else { String::new() };
        format!("{}.{name}{length}", sql(pgvector))
    }

    /// Everything that is there before Gristmill comes.
    pub fn tables(&self, pgvector: &str) -> String {
        let names = &self.names;
        let mut ddl = String::new();
        let schemas = [&names.types_schema, &names.source_schema, &names.target_schema];
        for schema in schemas {
            let _ = writeln!(ddl, "create schema if not exists {};", sql(schema));
        }
        let words = self.status.as_ref().map_or([""; 5], |status| status.words).map(literal).join(", ");
        for statement in [
            "create domain TYPES.note; as text;",
            "create domain TYPES.story; as text not null check (length(value) < 4000);",
            "create domain TYPES.count; as bigint check (value > 0);",
            "create domain TYPES.word; as text check (length(value) > 0);",
            "create domain TYPES.kind; as text not null default 'chunk';",
            "create type TYPES.mood; as enum ('it''s', 'UPPER', 'ümlaut', 'with space', 'a\"b', '{x}');",
            "create type TYPES.pair; as (number int, word text);",
            &format!("create type TYPES.state; as enum ({});", if self.status.is_some() { &words } else { "'none'" }),
        ] {
            let (head, tail) = statement.split_once(';').expect("the name ends there");
            let _ = writeln!(ddl, "{}{tail}", self.typed(head));
        }
        let _ = writeln!(ddl, "create table {} (tag int, chunks int);", self.log());
        let _ = writeln!(ddl, "create table {} (id int, \"Name\" text);", self.people());
        let _ = writeln!(ddl, "insert into {} values (7, {});", self.people(), literal(EVERYBODY));
        self.source_table(pgvector, &words, &mut ddl);
        if let Target::Chunks(chunks) = &self.target {
            self.chunk_table(chunks, pgvector, &mut ddl);
        }
        if self.queue {
            let names = &self.names;
            let pairs = names.asked.iter().zip(&self.keys);
            let mut columns: Vec<String> =
                pairs.map(|(name, (_, kind))| format!("{} {}", sql(name), self.typed(kind.sql))).collect();
            columns.push(format!("{} varchar(12) default 'WAITS'", sql(&names.answered)));
            columns.push(format!("{} smallint", sql(&names.attempts)));
            let _ = writeln!(ddl, "create table {} ({});", self.queue(), columns.join(", "));
        }
        ddl
    }

    fn source_table(&self, pgvector: &str, words: &str, ddl: &mut String) {
        let names = &self.names;
        let mut columns = vec!["dropped int default 1".to_owned()];
        columns.extend(self.keys.iter().map(|(name, kind)| format!("{} {} not null", sql(name), self.typed(kind.sql))));
        columns.push(format!("{} int not null", sql(&names.tag)));
        columns.push(format!("{} text", sql(&names.head)));
        columns.push(format!("{} {}", sql(&names.body), self.typed(self.body)));
        columns.push(format!("{} boolean", sql(&names.flag)));
        if let Tenant::Column(kind) = self.tenant {
            columns.push(format!("{} {kind}", sql(&names.owner)));
        }
        columns.push(format!("{} timestamptz default pg_catalog.now()", sql(&names.changed)));
        let head = sql(&names.head);
        columns.push(format!("{} text generated always as (coalesce({head}, '')) stored", sql(&names.generated)));
        if let Some(status) = &self.status {
            let column = sql(&names.status);
            let kind = match status.sql {
                "CHECKED" => format!("text check ({column} in ({words}))"),
                other => self.typed(other),
            };
            columns.push(format!("{column} {kind} default {}", literal(status.words[0])));
            columns.push(format!("{} text", sql(&names.error)));
            columns.push(format!("{} timestamptz", sql(&names.finished)));
        }
        columns.extend(self.count.map(|kind| format!("{} {kind}", sql(&names.count))));
        columns.push(format!("{} jsonb default '{{\"kept\": true}}'", sql(&names.facts)));
        if matches!(self.target, Target::Row) {
            columns.push(format!("{} {}", sql(&names.vector), self.vector(pgvector)));
        }
        let keys: Vec<String> = self.keys.iter().map(|(name, _)| sql(name)).collect();
        columns.push(format!("primary key ({})", keys.join(", ")));
        let partition = if self.partitioned { format!(" partition by range ({})", keys[0]) } else { String::new() };
        let _ = writeln!(ddl, "create table {} (\n    {}\n){partition};", self.source(), columns.join(",\n    "));
        let _ = writeln!(ddl, "alter table {} drop column dropped;", self.source());
        if self.partitioned {
            let part = format!("{}.\"the rest of {{it}}\"", sql(&names.types_schema));
            let _ = writeln!(ddl, "create table {part} partition of {} default;", self.source());
        }
    }

    fn chunk_table(&self, chunks: &Chunks, pgvector: &str, ddl: &mut String) {
        let names = &self.names;
        let mut columns = vec!["dropped int default 1".to_owned()];
        columns.push(format!("\"the kind, by its type\" {}", self.typed("TYPES.kind")));
        if !chunks.id.is_empty() {
            columns.push(format!("{} {}", sql(&names.id), chunks.id));
        }
        for (parent, (_, kind)) in names.parents.iter().zip(&self.keys) {
            let kind = if chunks.loose { "text".to_owned() } else { self.typed(kind.sql) };
            columns.push(format!("{} {kind} not null", sql(parent)));
        }
        columns.push(format!("{} {} not null", sql(&names.index), chunks.index));
        if let Some(kind) = chunks.text {
            columns.push(format!("{} {} not null", sql(&names.text), self.typed(kind)));
        }
        if chunks.tokens {
            columns.push(format!("{} int not null", sql(&names.tokens)));
        }
        if let Some(kind) = chunks.version {
            columns.push(format!("{} {} not null", sql(&names.version), self.typed(kind)));
        }
        if chunks.meta {
            columns.push(format!("{} jsonb", sql(&names.meta)));
        }
        if chunks.derived {
            let text = sql(&names.text);
            columns.push(format!("{} int generated always as (length({text}::text)) stored", sql(&names.derived)));
        }
        columns.push(format!("{} {} not null", sql(&names.embedding), self.vector(pgvector)));
        let parents: Vec<String> = names.parents.iter().map(|name| sql(name)).collect();
        let parents = parents.join(", ");
        if chunks.unique {
            let version = chunks.version.map_or_else(String::new, |_| format!(", {}", sql(&names.version)));
            columns.push(format!("unique ({parents}{version}, {})", sql(&names.index)));
        }
        if chunks.foreign_key {
            let keys: Vec<String> = self.keys.iter().map(|(name, _)| sql(name)).collect();
            let keys = keys.join(", ");
            columns.push(format!("foreign key ({parents}) references {} ({keys}) on delete cascade", self.source()));
        }
        let partition =
            if chunks.partitioned { format!(" partition by range ({})", sql(&names.index)) } else { String::new() };
        let _ = writeln!(ddl, "create table {} (\n    {}\n){partition};", self.target(), columns.join(",\n    "));
        let _ = writeln!(ddl, "alter table {} drop column dropped;", self.target());
        if chunks.partitioned {
            for (nth, bounds) in ["from (minvalue) to (1)", "from (1) to (maxvalue)"].iter().enumerate() {
                let part = format!("{}.\"chunks {{{nth}}}\"", sql(&names.types_schema));
                let _ = writeln!(ddl, "create table {part} partition of {} for values {bounds};", self.target());
            }
        }
    }

    /// The configuration, as a person would write it.
    pub fn pipeline(&self, name: &str) -> String {
        let names = &self.names;
        let table = |schema: &str, table: &str| value(&format!("{}.{}", written(schema), written(table)));
        let keys: Vec<String> = self.keys.iter().map(|(name, _)| value(&written(name))).collect();
        let body = braces(&names.body);
        let text = if self.head { format!("{}\n\n{body}", braces(&names.generated)) } else { body };
        let mut toml = format!(
            "\n[pipelines.{name}]\nkind = \"embed\"\nmodel = [\"d3\", \"d8\", \"d64\"]\nexisting = \"adopt\"\n\
             [pipelines.{name}.source]\ntable = {}\nkey = [{}]\ntext = {}\n",
            table(&names.source_schema, &names.source),
            keys.join(", "),
            value(&text),
        );
        if !self.declared || matches!(self.target, Target::Created { .. }) {
            toml = toml.replace("[\"d3\", \"d8\", \"d64\"]", &format!("\"d{}\"", self.dimensions));
        }
        match self.tenant {
            Tenant::Nobody => {}
            Tenant::Column(_) => toml.push_str(&format!("tenant = {}\n", value(&sql(&names.owner)))),
            Tenant::Constant => toml.push_str(&format!("tenant = {}\n", value(&literal(EVERYBODY)))),
            Tenant::Joined => {
                let joined = format!(
                    "(select p.\"Name\" from {} p where p.id = source.{} * 0 + 7)",
                    self.people(),
                    sql(&names.tag)
                );
                toml.push_str(&format!("tenant = \"gm_owner\"\nvalues = {{ gm_owner = {} }}\n", value(&joined)));
            }
        }
        match self.when {
            When::Always => {}
            When::Bare => toml.push_str(&format!("when = {}\n", value(&sql(&names.flag)))),
            When::Qualified => toml.push_str(&format!("when = {}\n", value(&format!("source.{}", sql(&names.flag))))),
        }
        if self.noticed == Noticed::ChangedAt {
            toml.push_str(&format!("changed_at = {}\n", value(&written(&names.changed))));
        }
        self.target_section(name, &table(&names.target_schema, &names.target), &mut toml);
        if let Some(status) = &self.status {
            let states = ["pending", "processing", "completed", "failed", "skipped"];
            let words: Vec<String> =
                states.iter().zip(status.words).map(|(state, word)| format!("{state} = {}", value(word))).collect();
            let columns = format!(
                "columns = {{ {} = \"{{job.error}}\", {} = \"{{job.finished}}\" }}\n",
                key(&written(&names.error)),
                key(&written(&names.finished))
            );
            toml.push_str(&format!(
                "[pipelines.{name}.status]\ncolumn = {}\nwords = {{ {} }}\n{}",
                value(&written(&names.status)),
                words.join(", "),
                if status.columns { columns.as_str() } else { "" }
            ));
        }
        let mut writes = Vec::new();
        writes.extend(self.count.map(|_| format!("{} = \"{{job.chunks}}\"", key(&written(&names.count)))));
        if self.facts {
            let of_row = value(&format!("row {}", braces(&names.tag)));
            writes.push(format!(
                "{} = {{ {} = {of_row}, chunks = \"{{job.chunks}}\" }}",
                key(&written(&names.facts)),
                key(&names.meta_key)
            ));
        }
        if !writes.is_empty() {
            toml.push_str(&format!("[pipelines.{name}.write]\n{}\n", writes.join("\n")));
        }
        if self.queue {
            let entry = |column: &str, template: &str| format!("{} = {}", key(&written(column)), value(template));
            let keys: Vec<String> =
                names.asked.iter().zip(&self.keys).map(|(asked, (key, _))| entry(asked, &braces(key))).collect();
            toml.push_str(&format!(
                "[pipelines.{name}.queue]\ntable = {}\nkey = {{ {} }}\ncolumns = {{ {} }}\n\
                 status = {{ column = {}, words = {{ pending = \"WAITS\", completed = \"it's done\", skipped = \"{{none}}\" }} }}\n",
                table(&names.target_schema, &names.queue),
                keys.join(", "),
                entry(&names.attempts, "{job.attempts}"),
                value(&written(&names.answered)),
            ));
        }
        if self.effect {
            let statement =
                format!("insert into {} (tag, chunks) values ({}, {{job.chunks}})", self.log(), braces(&names.tag));
            toml.push_str(&format!("[[pipelines.{name}.effects]]\nname = \"log\"\nsql = {}\n", value(&statement)));
        }
        toml
    }

    fn target_section(&self, name: &str, table: &str, toml: &mut String) {
        let names = &self.names;
        let entry = |column: &str, template: &str| format!("{} = {}", key(&written(column)), value(template));
        let parents: Vec<String> =
            names.parents.iter().zip(&self.keys).map(|(parent, (key, _))| entry(parent, &braces(key))).collect();
        let head = format!(
            "[pipelines.{name}.chunks]\ncharacters = 40\noverlap = 0\n[pipelines.{name}.target]\ntable = {table}\nparent = {{ {} }}\n",
            parents.join(", ")
        );
        let version = format!("version = {{ {} }}\n", entry(&names.version, VERSION));
        let mut columns = vec![entry(&names.index, "{chunk.index}"), entry(&names.embedding, "{chunk.vector}")];
        match &self.target {
            Target::Row => {
                toml.push_str(&format!(
                    "[pipelines.{name}.chunks]\nwhole = true\n[pipelines.{name}.target]\ncolumns = {{ {} }}\n",
                    entry(&names.vector, "{chunk.vector}")
                ));
                return;
            }
            Target::Created { version: versioned } => {
                toml.push_str(&head);
                toml.push_str("create = true\n");
                toml.push_str(if *versioned { &version } else { "" });
                columns.push(entry(&names.text, "{chunk.text}"));
                columns.push(entry(&names.tokens, &braces(&names.tag)));
            }
            Target::Chunks(chunks) => {
                toml.push_str(&head);
                toml.push_str(if chunks.version.is_some() { &version } else { "" });
                columns.extend(chunks.text.map(|_| entry(&names.text, "{chunk.text}")));
                columns.extend(chunks.tokens.then(|| entry(&names.tokens, "{chunk.tokens}")));
                if chunks.meta {
                    let of_row = value(&format!("row {}", braces(&names.tag)));
                    columns.push(format!("{} = {{ {} = {of_row} }}", key(&written(&names.meta)), key(&names.meta_key)));
                }
            }
        }
        toml.push_str(&format!("columns = {{ {} }}\n", columns.join(", ")));
    }
}
