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
    let worth = ["# Does not fit", "# There is a second", "#   "];
    let worth = |line: &&str| {
        worth.iter().any(|begin| line.starts_with(begin)) || line.contains("take a pipeline of their own")
    };
    let comments = text.lines().filter(worth).map(str::to_owned);
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
    "due\n"
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

#[tokio::test]
async fn ordinary_tables_are_proposed_and_what_is_not_says_why() {
    let said = proposed(
        "create table public.docs (id uuid primary key default gen_random_uuid(), content jsonb, body text, embedding_status text check (embedding_status in ('new', 'ok'))); \
         create table public.\"v1.docs\" (id bigint generated always as identity primary key, doc_id uuid references public.docs, chunk_index int, content text, embedding vector(384), title_embedding vector(384)); \
         create table public.pages (id int primary key, body text); \
         create table public.page_bits (page int references public.pages, doc_id uuid references public.docs, position int, text text, embedding vector(8)); \
         create table public.songs (id uuid primary key, lyrics text, body text); \
         create table public.verses (id uuid primary key, song_id uuid references public.songs, position int, text text, embedding vector(8)); \
         create table public.\"loose\nurl = 'x'\" (id int primary key, body text)",
    )
    .await;
    assert_snapshot!(said, @r#"
    "docs"
    "docs"
    # page of public.page_bits refers to public.pages, too: if chunks are of rows there as well, these take a pipeline of their own.
    # Does not fit yet: column embedding_status of public.docs does not take the word `pending`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `processing`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `completed`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `failed`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # There is a second vector, title_embedding of public."v1.docs": it takes a pipeline of its own.
    # Does not fit yet: column embedding_status of public.docs does not take the word `pending`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `processing`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `completed`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column embedding_status of public.docs does not take the word `failed`: constraint docs_embedding_status_check ((embedding_status = ANY (ARRAY['new'::text, 'ok'::text]))) refuses it
    # Does not fit yet: column id of public.verses must have a value, and target.columns gives it none; a default may
    #   public."loose url = 'x'": it has a text and no place for vectors, which target.create = true would make
    #   public.pages: it has a text and no place for vectors, which target.create = true would make
    "#);
}

#[tokio::test]
async fn a_path_of_nobody_says_so_and_pgvector_may_come_with_the_next_step() {
    let world = World::new().await;
    world.sql("drop table public.document_chunks, public.documents cascade; drop extension vector; \
        create schema storage; create table storage.buckets (id text); insert into storage.buckets values ('a'), (E'b\\nurl = 1'); \
        create table public.posts (id int primary key, path text, body text)").await;
    let mut init = command(&["init", "--out", "-"]);
    init.env("DATABASE_URL", &world.database.url);
    let text = run(init).await.ok().out;
    let lines = text
        .lines()
        .filter(|line| line.starts_with("[pipelines.posts]") || line.contains("within") || line.contains("bucket"));
    assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
    bucket = "a" # there are also: b url = 1
    [pipelines.posts]
    within = ""                          # nobody's folder: a row may name any file of the store; if that is not so, say whose
    "#);
    assert!(!text.contains("# Does not fit"), "{text}");
}
