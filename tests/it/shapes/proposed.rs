//! What `gristmill init` makes of tables with such names: a file that holds, or a comment that says why not.

use gristmill::app;
use gristmill::config::Config;
use insta::assert_snapshot;

use crate::cli::{command, run};
use crate::world::World;

use super::names::{cut, sql};

/// The pipelines that are proposed, those left out with why, and what does not fit of the former.
async fn proposed(tables: &str) -> String {
    let world = World::new().await;
    world.sql("drop table public.document_chunks, public.documents cascade").await;
    world.sql(tables).await;
    let file = world.files.path().join("proposed.toml");
    let mut init = command(&["init", "--json", "--out", file.to_str().unwrap()]);
    init.env("DATABASE_URL", &world.database.url);
    let written = run(init).await.ok().json();

    let text = std::fs::read_to_string(&file).unwrap();
    let environment = |name: &str| {
        Some(match name {
            "DATABASE_URL" => world.database.url.clone(),
            name if name.starts_with("GRISTMILL") => return None,
            _ => "https://vendor.example".to_owned(),
        })
    };
    let config =
        Config::read("proposed.toml", &text, &environment).unwrap_or_else(|misfits| panic!("{misfits:?}\n{text}"));
    let resolved = app::resolve(&world.pool, &config).await.unwrap();
    assert!(resolved.refused.is_empty(), "{:?}\n{text}", resolved.refused);
    assert_eq!(resolved.plans.len(), written["pipelines"].as_array().unwrap().len());
    let comments = text.lines().filter(|line| line.starts_with("# Does not fit")).map(str::to_owned);
    let plans = resolved.plans.iter().map(|plan| format!("{:?}", plan.source_table.name.table));
    plans.chain(comments).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn tables_of_any_name_are_proposed() {
    let document = "\"My.App\".\"Docs {\"\"NAME\"\"} | 1?\n\"";
    let said = proposed(&format!(
        "create schema \"My.App\"; \
         create table {document} (\"Id.No\" int, \"MODEL|code\" text, content text, user_id text, updated_at date, primary key (\"Id.No\", \"MODEL|code\")); \
         create table \"My.App\".\"chunks of ${{it}}\" (\"doc.id\" int not null, \"tenant\" text not null, chunk_index int not null, content text, \
             \"emb.version\" text not null, \"Id.No\" int not null, embedding vector(8) not null, \
             foreign key (\"doc.id\", \"tenant\") references {document}); \
         create table \"My.App\".\"notes \u{7f}${{X}}\" (\"{{id}}\" uuid primary key, title text, \"vec.tor?\" vector(8)); \
         create table \"My.App\".\"due\n\" (id int primary key, body text, embedding vector(8), embedding_status varchar(9))"
    ))
    .await;
    assert_snapshot!(said, @r#"
    "Docs {\"NAME\"} | 1?\n"
    "notes \u{7f}${X}"
    # Does not fit yet: column embedding_status of "My.App"."due " does not take the word `processing`: it holds 9 characters
    "#);
}

#[tokio::test]
async fn a_table_of_ours_has_room_for_its_names() {
    let long = |letter: &str| cut(letter.repeat(63));
    let (table, one, other) = (sql(&long("ü")), sql(&long("x")), sql(&long("Ö")));
    let said = proposed(&format!(
        "create table {table} ({one} int, {other} int, \"a\nb\" int, body text, primary key ({one}, {other}, \"a\nb\"))"
    ))
    .await;
    assert_eq!(said, format!("{:?}", long("ü")));
}
