//! OrionChat, an AI chat: files become chunks, messages carry their own vector, and every token is billed to its user, within
//! limits, whichever of its two schemas is there.

use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{App, JOBS, LEDGER, fixture};

const ANN: &str = "a0000000-0000-4000-8000-0000000000aa";
const BOB: &str = "b0000000-0000-4000-8000-0000000000bb";

/// A conversation of each, and limits that Bob has all but used up.
const PEOPLE: &str = "insert into auth.users values ('a0000000-0000-4000-8000-0000000000aa'), ('b0000000-0000-4000-8000-0000000000bb'); \
    insert into public.user_profiles (id, email, daily_token_limit) values \
        ('a0000000-0000-4000-8000-0000000000aa', 'ann@example.org', 100000), ('b0000000-0000-4000-8000-0000000000bb', 'bob@example.org', 8); \
    insert into public.conversations (id, user_id, title) values \
        ('c0000000-0000-4000-8000-0000000000ca', 'a0000000-0000-4000-8000-0000000000aa', 'Mills'), \
        ('c0000000-0000-4000-8000-0000000000cb', 'b0000000-0000-4000-8000-0000000000bb', 'Bread');";

const FILES: (&str, &str) = (
    "files",
    "select concat_ws(' ', test.id(id), original_name, processing_status, 'chunks=' || chunk_count, '|', left(regexp_replace(extracted_text, '\\s+', ' ', 'g'), 48)) \
     from public.files order by id",
);

const MESSAGES: (&str, &str) = (
    "messages",
    "select concat_ws(' ', test.id(id), role, left(content, 24), '|', test.vector(embedding)) from public.messages order by id",
);

const PROFILES: (&str, &str) = (
    "profiles",
    "select concat_ws(' ', email, total_tokens_used, '$' || trim_scale(total_cost_usd)) from public.user_profiles order by email",
);

impl App {
    /// Uploads a file and inserts its row as the app does: finished already, with a placeholder for its text.
    async fn attach(&self, bucket: &str, number: u8, user: &str, name: &str, media_type: &'static str, bytes: &[u8]) {
        let path = format!("{user}/{number:02}.{}", name.rsplit('.').next().unwrap());
        self.store.put(bucket, &path, media_type, bytes);
        self.attach_path(number, user, name, media_type, &path).await;
    }

    async fn attach_path(&self, number: u8, user: &str, name: &str, media_type: &str, path: &str) {
        let conversation = if user == ANN { "ca" } else { "cb" };
        self.world
            .sql(&format!(
                "insert into public.files (id, user_id, conversation_id, original_name, storage_path, mime_type, file_size, processing_status, extracted_text) \
                 values ('f0000000-0000-4000-8000-0000000000{number:02}', '{user}', 'c0000000-0000-4000-8000-0000000000{conversation}', \
                         '{name}', '{path}', '{media_type}', 1000, 'completed', '[Content of {name}]')"
            ))
            .await;
    }
}

/// A message of Ann's, without a vector.
fn message(number: u8, role: &str, content: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into public.messages (id, conversation_id, user_id, role, content) values \
         ('50000000-0000-4000-8000-0000000000{number:02}', 'c0000000-0000-4000-8000-0000000000ca', '{ANN}', '{role}', '{content}')"
    ))
}

#[tokio::test]
async fn files_and_messages_are_searchable_and_billed_in_the_document_s_shape() {
    let app = App::new("orionchat", "document").await;
    app.world.sql(PEOPLE).await;
    app.attach("documents", 1, ANN, "old.txt", "text/plain", b"Wheat was ground here.").await;
    app.world.sql(&message(0, "user", "Said long ago.").0).await;
    assert_snapshot!(app.check().await, @r#"
    ok pipeline files: "public"."files" to "public"."document_chunks" by model small-3 (1536 dimensions); columns user_id, content, chunk_index, embedding, page_number, heading, metadata; on the row extracted_text, chunk_count; status in processing_status; limit daily (1 of 2 alternatives); effect usage (1 of 2 alternatives): insert public.usage_logs; effect totals: update public.user_profiles
    ok pipeline messages: "public"."messages" to "public"."messages" itself by model small-3 (1536 dimensions); columns embedding; limit daily (1 of 2 alternatives); effect usage (1 of 2 alternatives): insert public.usage_logs; effect totals: update public.user_profiles
    warning configuration: pipelines.files.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.messages.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);
    app.world.work().await;
    assert_snapshot!(app.accept("files").await, @r#"1 rows, 0 tokens, 1 files, "0" usd"#);
    app.world.install_triggers().await;

    app.attach(
        "documents",
        2,
        ANN,
        "testing.docx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        &fixture("files/sqlite-testing.docx"),
    )
    .await;
    app.attach("documents", 3, ANN, "release.pdf", "application/pdf", &fixture("files/sqlite-copyright-release.pdf"))
        .await;
    app.attach("documents", 4, ANN, "secret.pdf", "application/pdf", &fixture("hostile/encrypted.pdf")).await;
    app.attach("documents", 5, ANN, "empty.txt", "text/plain", b"").await;
    app.attach("documents", 6, ANN, "photo.png", "image/png", b"\x89PNG").await;
    app.attach_path(7, ANN, "bobs.txt", "text/plain", &format!("{BOB}/10.txt")).await;
    app.attach_path(8, ANN, "gone.txt", "text/plain", &format!("{ANN}/08.txt")).await;
    app.attach(
        "documents",
        9,
        BOB,
        "much.txt",
        "text/plain",
        b"Bob has hardly a token left, and this is more than that.",
    )
    .await;
    app.vendor.poison("forbidden");
    let mut ann = app.user(ANN).await;
    for (number, role, content) in [
        (1, "user", "How does a mill work?"),
        (2, "assistant", "Two stones turn."),
        (3, "system", "Be kind."),
        (4, "user", ""),
        (5, "user", "A forbidden word."),
    ] {
        ann.execute(message(number, role, content)).await.unwrap();
    }
    app.world.work().await;

    let chunks = (
        "chunks",
        "select concat_ws(' ', test.id(file_id), 'of=' || string_agg(distinct test.id(user_id), ','), count(*), min(chunk_index) || '-' || max(chunk_index), \
             'pages ' || min(page_number) || '-' || max(page_number), 'longest=' || max(length(content)), string_agg(distinct test.vector(embedding), ','), \
             string_agg(distinct metadata::text, ','), 'headings=' || count(distinct heading), max(heading)) \
         from public.document_chunks group by file_id order by file_id",
    );
    let usage = (
        "usage_logs",
        "select concat_ws(' ', test.id(user_id), test.id(conversation_id), coalesce(test.id(message_id), right(metadata->>'file_id', 2)), action, provider, model, \
             tokens_used, '$' || trim_scale(cost_usd), 'chunks=' || (metadata->>'chunks')) from public.usage_logs order by action, message_id, metadata->>'file_id'",
    );
    assert_snapshot!(app.picture(&[FILES, chunks, MESSAGES, usage, PROFILES, JOBS, LEDGER]).await, @r#"
    # files
    01 old.txt completed chunks=1 | Wheat was ground here.
    02 testing.docx completed chunks=83 | How SQLite Is Tested SQLite Small. Fast. Reliabl
    03 release.pdf completed chunks=6 | Copyright Release for Contributions To SQLite SQ
    04 secret.pdf failed chunks=0 | [Content of secret.pdf]
    05 empty.txt completed chunks=0 | [Content of empty.txt]
    06 photo.png completed chunks=0 | [Content of photo.png]
    07 bobs.txt failed chunks=0 | [Content of bobs.txt]
    08 gone.txt failed chunks=0 | [Content of gone.txt]
    09 much.txt pending chunks=0 | [Content of much.txt]
    # chunks
    01 of=aa 1 0-0 longest=22 v1536 {"source": "old.txt"} headings=0
    02 of=aa 83 0-82 longest=986 v1536 {"source": "testing.docx"} headings=36 9. Disabled Optimization Tests
    03 of=aa 6 0-5 pages 1-1 longest=911 v1536 {"source": "release.pdf"} headings=2 Copyright Release for
    # messages
    00 user Said long ago. | no vector
    01 user How does a mill work? | v1536
    02 assistant Two stones turn. | v1536
    03 system Be kind. | no vector
    04 user  | no vector
    05 user A forbidden word. | no vector
    # usage_logs
    aa ca 01 document_processing openai text-embedding-3-small 6 $0.00000012 chunks=1
    aa ca 02 document_processing openai text-embedding-3-small 11640 $0.0002328 chunks=83
    aa ca 03 document_processing openai text-embedding-3-small 801 $0.00001602 chunks=6
    aa ca 01 embedding openai text-embedding-3-small 6 $0.00000012
    aa ca 02 embedding openai text-embedding-3-small 4 $0.00000008
    # profiles
    ann@example.org 12457 $0.00024914
    bob@example.org 0 $0
    # jobs
    files 01 completed r1 attempts=1
    files 02 completed r1 attempts=1
    files 03 completed r1 attempts=1
    files 04 failed r1 attempts=1 unreadable the file is encrypted
    files 05 skipped r1 attempts=0 skipped there is no text
    files 07 failed r1 attempts=1 file the path does not lie below what `within` says
    files 08 failed r1 attempts=1 file a0000000-0000-4000-8000-0000000000aa/08.txt in store attachments is not there
    files 09 waiting r1 attempts=0 limit limit daily leaves too little: 8 tokens left, 14 needed
    messages 00 skipped r1 attempts=0 skipped was there before, and existing = "ignore"
    messages 01 completed r1 attempts=1
    messages 02 completed r1 attempts=1
    messages 04 skipped r1 attempts=0 skipped there is no text
    messages 05 failed r1 attempts=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: A forbidden …
    # ledger
    files 01 r1 tenant=aa 6 tokens $0.00000012
    files 02 r1 tenant=aa 11640 tokens $0.00023280
    files 03 r1 tenant=aa 801 tokens $0.00001602
    messages 01 r1 tenant=aa 6 tokens $0.00000012
    messages 02 r1 tenant=aa 4 tokens $0.00000008
    "#);

    // What the app sums is what the ledger says.
    let apart = "select count(*) from public.user_profiles p where (total_tokens_used, total_cost_usd) <> \
        (select coalesce(sum(quantity), 0), coalesce(sum(cost), 0) from gristmill.usage_events where tenant = p.id::text)";
    assert_eq!(app.world.value::<i64>(apart).await, 0);

    // Bob's limit is raised; a person lets his file go on. A message is taken back.
    app.world.sql("update public.user_profiles set daily_token_limit = 100000").await;
    let file = app.world.value::<i64>("select id from gristmill.embedding_jobs where error_kind = 'limit'").await;
    crate::cli::gristmill(&app.world, &["jobs", "retry", &file.to_string()]).await.ok();
    ann.execute("delete from public.messages where content like 'Two stones%'").await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[FILES, PROFILES]).await, @"
    # files
    01 old.txt completed chunks=1 | Wheat was ground here.
    02 testing.docx completed chunks=83 | How SQLite Is Tested SQLite Small. Fast. Reliabl
    03 release.pdf completed chunks=6 | Copyright Release for Contributions To SQLite SQ
    04 secret.pdf failed chunks=0 | [Content of secret.pdf]
    05 empty.txt completed chunks=0 | [Content of empty.txt]
    06 photo.png completed chunks=0 | [Content of photo.png]
    07 bobs.txt failed chunks=0 | [Content of bobs.txt]
    08 gone.txt failed chunks=0 | [Content of gone.txt]
    09 much.txt completed chunks=1 | Bob has hardly a token left, and this is more th
    # profiles
    ann@example.org 12457 $0.00024914
    bob@example.org 14 $0.00000028
    ");
}

#[tokio::test]
async fn cents_add_up_and_metadata_takes_what_has_no_column_in_the_migrations_shape() {
    let app = App::new("orionchat", "migrations").await;
    // A thousandfold price, so that a test reaches a cent.
    let app = App { world: app.world.change("usd = \"0.00000002\"", "usd = \"0.00002\""), ..app };
    app.world.sql(PEOPLE).await;
    app.store.bucket("documents");
    assert_snapshot!(app.check().await, @r#"
    ok pipeline files: "public"."files" to "public"."document_chunks" by model small-3 (1536 dimensions); columns content, chunk_index, embedding, metadata; on the row extracted_text, chunk_count; status in processing_status; limit daily (2 of 2 alternatives); effect usage (2 of 2 alternatives): insert public.usage_logs; effect totals: update public.user_profiles
    ok pipeline messages: "public"."messages" to "public"."messages" itself by model small-3 (1536 dimensions); columns embedding; limit daily (2 of 2 alternatives); effect usage (2 of 2 alternatives): insert public.usage_logs; effect totals: update public.user_profiles
    warning configuration: pipelines.files.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.messages.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);
    app.world.work().await;

    app.attach(
        "attachments",
        1,
        ANN,
        "testing.docx",
        "application/octet-stream",
        &fixture("files/sqlite-testing.docx"),
    )
    .await;
    app.world
        .sql(
            "insert into public.messages (conversation_id, role, content) \
             select ('c0000000-0000-4000-8000-0000000000c' || case when n % 10 = 0 then 'b' else 'a' end)::uuid, 'user', 'Grain number ' || n || ' fell between the stones.' \
             from generate_series(101, 160) n",
        )
        .await;
    let workers = [app.world.start().await, app.world.start().await];
    for worker in &workers {
        worker.idle().await;
    }
    for worker in workers {
        worker.stop().await;
    }

    let chunks = (
        "chunks",
        "select concat_ws(' ', test.id(file_id), count(*), 'longest=' || max(length(content)), string_agg(distinct test.vector(embedding), ','), \
             string_agg(distinct (metadata - 'heading')::text, ','), \
             'headings=' || count(distinct metadata->>'heading'), max(metadata->>'heading')) \
         from public.document_chunks group by file_id order by file_id",
    );
    let usage = (
        "usage_logs",
        "select concat_ws(' ', test.id(user_id), resource_type, count(*) || ' rows', sum(amount), '$' || trim_scale(sum((metadata->>'cost_usd')::numeric)), \
             string_agg(distinct metadata->>'provider', ',')) from public.usage_logs group by user_id, resource_type \
         union all select concat_ws(' ', test.id(user_id), 'in all', sum(cost_cents), 'cents') from public.usage_logs group by user_id order by 1",
    );
    let messages = (
        "messages",
        "select concat_ws(' ', test.id(c.user_id), count(*), test.vector(embedding)) from public.messages m join public.conversations c on c.id = conversation_id \
         group by c.user_id, test.vector(embedding) order by 1",
    );
    let standing = (
        "jobs",
        "select concat_ws(' ', pipeline, right(tenant, 2), count(*), state, reason) from gristmill.embedding_jobs group by pipeline, tenant, state, reason order by 1",
    );
    assert_snapshot!(app.picture(&[FILES, chunks, messages, usage, PROFILES, standing]).await, @r#"
    # files
    01 testing.docx completed chunks=83 | How SQLite Is Tested SQLite Small. Fast. Reliabl
    # chunks
    01 83 longest=986 v1536 {"source": "testing.docx"} headings=36 9. Disabled Optimization Tests
    # messages
    aa 54 v1536
    bb 6 no vector
    # usage_logs
    aa document_processing 1 rows 11640 $0.2328 openai
    aa in all 24 cents
    aa tokens 54 rows 540 $0.0108
    # profiles
    ann@example.org 12180 $0.2436
    bob@example.org
    # jobs
    files aa 1 completed
    messages aa 54 completed
    messages bb 6 waiting limit daily leaves too little: 8 tokens left, 10 needed
    "#);
    let whole = "select count(*) from (select sum(cost_cents) as cents, floor(100 * sum((metadata->>'cost_usd')::numeric)) as owed from public.usage_logs group by user_id) as u where cents <> owed";
    assert_eq!(app.world.value::<i64>(whole).await, 0);
    assert_eq!(
        app.world.value::<i64>("select deadlocks from pg_stat_database where datname = current_database()").await,
        0
    );
}
