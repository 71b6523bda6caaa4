//! What `gristmill init` makes of the five databases.

use gristmill::config::Config;
use insta::assert_snapshot;

use crate::cli::{Ran, command, run};
use crate::schema::make_role;
use crate::stores::KEY;
use crate::world::World;

use super::{App, WORKER};

/// What is proposed, and that it passes `check` as it is.
async fn proposed(app: &str, shape: &str) -> String {
    let mut app = App::new(app, shape).await;
    app.store.bucket("documents");
    let storage =
        "create schema if not exists storage; create table if not exists storage.buckets (id text primary key)";
    app.world.sql(storage).await;
    let file = app.world.files.path().join("proposed.toml");
    let mut init = command(&["init", "--json", "--out", file.to_str().unwrap()]);
    init.env("DATABASE_URL", &app.world.database.url);
    let written = run(init).await.ok().json();

    let text = std::fs::read_to_string(&file).unwrap();
    let at_vendor = format!("kind = \"openai\"\nurl = \"{}\"\nkey", app.vendor.url());
    let mut toml = text
        .replace("kind = \"openai\"\nkey", &at_vendor)
        .replace("kind = \"local\"", "kind = \"hash\"")
        .replace("url = \"${EMBEDDER_URL}\"\n", "");
    for (name, value) in [
        ("DATABASE_URL", app.world.database.url.as_str()),
        ("OPENAI_API_KEY", "sk-only-for-tests"),
        ("EMBEDDER_KEY", "sk-only-for-tests"),
        ("SUPABASE_URL", &app.store.supabase().await),
        ("SUPABASE_SECRET_KEY", KEY),
    ] {
        toml = toml.replace(&format!("${{{name}}}"), value);
    }
    if toml.contains("[providers.embedder]\nkind = \"openai\"\nkey") {
        toml =
            toml.replace("[providers.embedder]\nkind = \"openai\"\nkey", &format!("[providers.embedder]\n{at_vendor}"));
    }
    app.world.toml = format!("{toml}{WORKER}");
    app.check().await;

    let left_out = written["left_out"].as_object().unwrap();
    let names = |list: &serde_json::Value| {
        list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(", ")
    };
    let mut lines = vec![names(&written["pipelines"])];
    lines.extend(left_out.iter().map(|(name, why)| format!("not {name}: {}", names(why))));
    lines.join("\n")
}

#[tokio::test]
async fn init_proposes_what_the_five_applications_have_and_it_passes_check() {
    assert_snapshot!(proposed("arami", "document").await, @"daily_sessions");
    assert_snapshot!(proposed("arami", "migration").await, @"daily_sessions");
    assert_snapshot!(proposed("lgtempo", "migrations").await, @"knowledge_documents, graph_nodes");
    assert_snapshot!(proposed("lgtempo", "production").await, @"knowledge_documents");
    assert_snapshot!(proposed("orionchat", "document").await, @"files, messages");
    assert_snapshot!(proposed("orionchat", "migrations").await, @"files, messages");
    assert_snapshot!(proposed("somni", "clean").await, @"dreams, knowledge_base, knowledge_fragments, messages, themes");
    assert_snapshot!(proposed("somni", "live").await, @"dreams, knowledge_base, knowledge_fragments, messages, themes");
    assert_snapshot!(proposed("yarnnn", "schema").await, @"documents, memories");
}

#[tokio::test]
async fn init_replaces_no_file_unasked_and_names_what_it_needs() {
    let app = App::new("yarnnn", "schema").await;
    let file = app.world.files.path().join("proposed.toml");
    std::fs::write(&file, "mine").unwrap();
    let mut init = command(&["init", "--out", file.to_str().unwrap()]);
    init.env("DATABASE_URL", &app.world.database.url);
    let ran = run(init).await;
    assert_eq!((ran.code, std::fs::read_to_string(&file).unwrap().as_str()), (2, "mine"));
    assert!(ran.err.contains("--force replaces it"), "{}", ran.err);

    let ran = run(command(&["init", "--out", "-"])).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("DATABASE_URL is not set"), "{}", ran.err);

    app.world.sql("drop schema public cascade; create schema public").await;
    let mut init = command(&["init", "--out", "-"]);
    init.env("DATABASE_URL", &app.world.database.url);
    let ran = run(init).await;
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.err.contains("looks like a source"), "{}", ran.err);
}

#[tokio::test]
async fn init_on_the_starter_names_nothing_that_is_not_set() {
    let world = World::new().await;
    let file = world.files.path().join("proposed.toml");
    let mut init = command(&["init", "--out", file.to_str().unwrap()]);
    init.env("DATABASE_URL", &world.database.url);
    run(init).await.ok();

    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("[stores.files]\nkind = \"local\"\n"), "{text}");
    let environment = |name: &str| (name == "DATABASE_URL").then(|| world.database.url.clone());
    Config::read("proposed.toml", &text, &environment).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
}

/// `gristmill init --json` over these tables alone.
async fn of_tables(tables: &str) -> Ran {
    let world = World::new().await;
    world.sql(&format!("drop table public.document_chunks, public.documents; {tables}")).await;
    let mut init = command(&["init", "--json", "--out", "-"]);
    init.env("DATABASE_URL", &world.database.url).env_remove("OPENAI_API_KEY");
    run(init).await
}

#[tokio::test]
async fn init_finds_a_text_whatever_it_is_called_and_names_each_table_that_it_passes_over() {
    let ran = of_tables(
        "create table emails (id int primary key, message_id text unique, subject text, email_body text, embedding vector(1536));
         create table messages (id int primary key, message text, embedding vector(768));
         create table reviews (id int primary key, sku varchar(20), author text, comment text, stars int, embedding vector(1536));
         create table snippets (id uuid primary key, code text, embedding vector(384));
         create table slugs (slug text primary key, embedding vector(384));
         create schema \"My Schema\";
         create table \"My Schema\".\"Weird Table\" (id int primary key, \"The Text\" text, \"imageUrl\" text, v halfvec(3072));
         create table nopk (body text, embedding vector(384));
         create table posts (id int primary key, body text);
         create table numbers (id int primary key, embedding vector(384));
         create table people (id int primary key, email text)",
    )
    .await;
    let said = ran.ok().json();

    let toml = said["toml"].as_str().unwrap();
    let texts: Vec<&str> =
        toml.lines().filter(|line| line.starts_with("table = ") || line.starts_with("text = ")).collect();
    assert_snapshot!(texts.join("\n"), @r#"
    table = "My Schema.Weird Table"
    text = "{The Text}"
    table = "public.emails"
    text = "{subject}\n{email_body}"
    table = "public.messages"
    text = "{message}"
    table = "public.reviews"
    text = "{comment}"
    table = "public.slugs"
    text = "{slug}"
    table = "public.snippets"
    text = "{code}"
    "#);
    assert_eq!(said["left_out"], serde_json::json!({}), "{said}");
    assert_eq!(said["unset"], serde_json::json!(["EMBEDDER_KEY", "EMBEDDER_URL", "OPENAI_API_KEY"]));
    assert_snapshot!(&toml[toml.find("# Tables that").unwrap()..], @"
    # Tables that are not proposed, and why:
    #   public.nopk: it has no primary key
    #   public.numbers: it has no column of text
    #   public.people: it has no column of type vector or halfvec, and none that is called like a text
    #   public.posts: it has a text and no place for vectors, which target.create = true would make
    ");
    assert_eq!(said["passed_over"]["public.nopk"], "it has no primary key");
}

#[tokio::test]
async fn init_names_every_table_where_none_is_a_source() {
    let ran =
        of_tables("create table nopk (body text, embedding vector(384)); create table numbers (id int primary key)")
            .await;

    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    let said: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_snapshot!(said["error"]["message"].as_str().unwrap(), @"
    none of the 2 tables looks like a source: a table with a primary key and a text or a file's path
    public.nopk: it has no primary key
    public.numbers: it has no column of text
    ");
}

#[tokio::test]
async fn init_names_the_tables_that_its_role_may_not_read() {
    const ROLE: &str = "gristmill_test_proposing";
    let world = World::new().await;
    make_role(&world, ROLE).await;
    let tables = "create table public.secrets (id int primary key, body text, embedding vector(384)); \
                  create table public.notes (id int primary key, body text, embedding vector(384));";
    world
        .sql(&format!("{tables} grant usage on schema public to {ROLE}; grant select on public.notes to {ROLE}"))
        .await;
    let mut init = command(&["init", "--json", "--out", "-"]);
    let mark = if world.database.url.contains('?') { '&' } else { '?' };
    init.env("DATABASE_URL", format!("{}{mark}options=-crole%3D{ROLE}", world.database.url));

    let said = run(init).await.ok().json();

    assert_eq!(said["passed_over"]["public.secrets"], "this role may not read it", "{said}");
    assert!(said["toml"].as_str().unwrap().contains("#   public.secrets: this role may not read it\n"), "{said}");
}

#[tokio::test]
async fn init_says_what_to_set_and_which_file_to_name() {
    let world = World::new().await;
    world.sql("create table public.notes (id int primary key, body text, embedding vector(1536))").await;
    let file = world.files.path().join("other.toml");
    let mut init = command(&["init", "--out", file.to_str().unwrap()]);
    init.env("DATABASE_URL", &world.database.url)
        .env("GRISTMILL_FILES", world.files.path())
        .env_remove("OPENAI_API_KEY");

    let said = run(init).await.ok().out;

    let with = format!("--config {}", file.display());
    let next = format!("read it, set OPENAI_API_KEY, then: gristmill migrate {with} && gristmill check {with}\n");
    assert!(said.ends_with(&next), "{said}");
}

#[tokio::test]
async fn init_finds_tables_of_chunks_by_their_foreign_key_and_no_file_in_one() {
    let ran = of_tables(
        "create table articles (id uuid primary key, title text, body text);
         create table article_sections (id bigint generated always as identity primary key, article_id uuid not null references articles,
             idx int not null, body text not null, embedding halfvec(1536));
         create table artikel (mandant int, nr varchar(20), titel text, text text, primary key (mandant, nr));
         create table artikel_stuecke (artikel_nr varchar(20), mandant int, stueck int, inhalt text not null, vektor vector(1536),
             primary key (mandant, artikel_nr, stueck), foreign key (artikel_nr, mandant) references artikel (nr, mandant));
         create table files (id uuid primary key, user_id uuid not null, storage_path text not null);
         create table file_chunks (file_id uuid references files, idx int, body text, embedding vector(1536), primary key (file_id, idx));
         create table pages (host text, path text, body text, primary key (host, path));
         create table page_embeddings (id uuid primary key default gen_random_uuid(), host text, path text, nth smallint, body text, embedding vector(1536),
             unique (host, path, nth), foreign key (host, path) references pages);
         create table terms (id int primary key, slug text not null unique, body text);
         create table term_parts (slug text not null references terms (slug), idx int not null, body text, embedding vector(1536));
         create table words (id int primary key, word text unique, body text);
         create table word_parts (word text references words (word), idx int, body text, embedding vector(1536));
         create table reviews (id int primary key, page_host text, page_path text, stars int, body text, embedding vector(1536),
             foreign key (page_host, page_path) references pages)",
    )
    .await;
    let said = ran.ok().json();

    let toml = said["toml"].as_str().unwrap();
    let worth = ["[pipelines.", "table = ", "key = [", "text = ", "path = ", "parent = ", "columns = "];
    let lines =
        toml.lines().filter(|line| worth.iter().any(|begin| line.starts_with(begin)) && !line.contains(".chunks]"));
    assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
    [pipelines.articles]
    [pipelines.articles.source]
    table = "public.articles"
    key = ["id"]
    text = "{title}\n{body}"
    [pipelines.articles.target]
    table = "public.article_sections"
    parent = { article_id = "{id}" }
    columns = { idx = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
    [pipelines.artikel]
    [pipelines.artikel.source]
    table = "public.artikel"
    key = ["mandant", "nr"]
    text = "{text}"
    [pipelines.artikel.target]
    table = "public.artikel_stuecke"
    parent = { artikel_nr = "{nr}", mandant = "{mandant}" }
    columns = { stueck = "{chunk.index}", inhalt = "{chunk.text}", vektor = "{chunk.vector}" }
    [pipelines.files]
    [pipelines.files.source]
    table = "public.files"
    key = ["id"]
    [pipelines.files.file]
    path = "{storage_path}"
    [pipelines.files.target]
    table = "public.file_chunks"
    parent = { file_id = "{id}" }
    columns = { idx = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
    [pipelines.pages]
    [pipelines.pages.source]
    table = "public.pages"
    key = ["host", "path"]
    text = "{body}"
    [pipelines.pages.target]
    table = "public.page_embeddings"
    parent = { host = "{host}", path = "{path}" }
    columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
    [pipelines.terms]
    [pipelines.terms.source]
    table = "public.terms"
    key = ["slug"]
    text = "{body}"
    [pipelines.terms.target]
    table = "public.term_parts"
    parent = { slug = "{slug}" }
    columns = { idx = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
    [pipelines.reviews]
    [pipelines.reviews.source]
    table = "public.reviews"
    key = ["id"]
    text = "{body}"
    [pipelines.reviews.target]
    columns = { embedding = "{chunk.vector}" }
    "#);
    assert_eq!(said["passed_over"], serde_json::json!({}));
    // That one may be null is for the application to mend.
    assert_snapshot!(said["left_out"], @r#"{"words":["column word of public.words may be null, and such a row has no key"]}"#);
}

#[tokio::test]
async fn init_names_the_folder_that_is_to_be_made_and_makes_none() {
    let world = World::new().await;
    let (out, root) = (world.files.path().join("proposed.toml"), world.files.path().join("not there"));
    let init = || {
        let mut init = command(&["init", "--force", "--out", out.to_str().unwrap()]);
        init.env("DATABASE_URL", &world.database.url).env("GRISTMILL_FILES", &root);
        run(init)
    };
    let said = init().await.ok().out;
    let make = format!(
        "read it, make the folder {} (or set GRISTMILL_FILES to the one where the files are), then: ",
        root.display()
    );
    assert!(said.contains(&make) && !root.exists(), "{said}");
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("root = \"${GRISTMILL_FILES:-./files}\"\n"), "{text}");

    std::fs::create_dir(&root).unwrap();
    let said = init().await.ok().out;
    assert!(said.contains("read it, then: "), "{said}");
}
