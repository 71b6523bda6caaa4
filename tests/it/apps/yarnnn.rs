//! YARNNN, a thinking partner: documents that its own request may have half finished, and memories that ask for their vector.

use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{App, JOBS, LEDGER, fixture};
use crate::fake_openai::Answer;

const EVE: &str = "e0000000-0000-4000-8000-0000000000ee";

const PEOPLE: &str = "insert into auth.users values ('e0000000-0000-4000-8000-0000000000ee'); \
    insert into public.workspaces (id, name, owner_id) values ('c0000000-0000-4000-8000-0000000000c1', 'Hers', 'e0000000-0000-4000-8000-0000000000ee'); \
    insert into public.projects (id, name, workspace_id) values ('c0000000-0000-4000-8000-0000000000c2', 'Mills', 'c0000000-0000-4000-8000-0000000000c1');";

const DOCUMENTS: (&str, &str) = (
    "documents",
    "select concat_ws(' ', test.id(d.id), d.filename, d.processing_status, 'pages=' || d.page_count, 'words=' || d.word_count, \
         case when d.processed_at is not null then 'at a time' end, d.error_message, '|', c.n, c.pages, c.sections, c.levels, c.tokens, c.vectors) \
     from public.documents d left join lateral ( \
         select nullif(count(*), 0) || ' chunks', 'pages ' || min(page_number) || '-' || max(page_number), \
             'sections=' || nullif(count(distinct metadata->>'section_title'), 0), 'levels=' || nullif(count(distinct metadata->>'heading_level'), 0), \
             'tokens=' || min(token_count) || '-' || max(token_count), string_agg(distinct test.vector(embedding), ' and ') \
         from public.chunks where document_id = d.id) as c (n, pages, sections, levels, tokens, vectors) on true order by d.id",
);

const MEMORIES: (&str, &str) = (
    "memories",
    "select concat_ws(' ', test.id(id), content, case when not is_active then 'put away' end, '|', test.vector(embedding)) from public.memories order by id",
);

/// A document's id, by its last two digits.
fn document(number: u8) -> String {
    format!("d0000000-0000-4000-8000-0000000000{number:02}")
}

impl App {
    /// Uploads a document and inserts its row, as the app's request does.
    async fn hand_in(&self, number: u8, extension: &str, status: &str, bytes: &[u8]) {
        let path = format!("{EVE}/{}/original.{extension}", document(number));
        self.store.put("documents", &path, "application/octet-stream", bytes);
        self.world
            .sql(&format!(
                "insert into public.documents (id, user_id, filename, file_url, storage_path, file_type, processing_status) values \
                 ('{}', '{EVE}', '{number:02}.{extension}', 'https://example.org/storage/v1/object/public/documents/{path}', '{path}', '{extension}', '{status}')",
                document(number)
            ))
            .await;
    }

    /// What the app's own parser writes: chunks, with vectors or without.
    async fn parse(&self, number: u8, vector: &str) {
        self.world
            .sql(&format!(
                "insert into public.chunks (document_id, content, chunk_index, embedding) select '{}', 'By the app.', n, {vector} from generate_series(0, 1) n; \
                 update public.documents set processing_status = 'completed' where id = '{0}'",
                document(number)
            ))
            .await;
    }

    /// A minute later.
    async fn after_the_grace(&self) {
        self.world
            .sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting' and error_kind is null")
            .await;
    }
}

const VECTOR: &str = "array_fill(0.5::real, array[1536])::extensions.vector";

#[tokio::test]
async fn documents_that_the_app_left_half_done_are_finished_and_the_others_left_alone() {
    let app = App::new("yarnnn", "schema").await;
    app.world.sql(PEOPLE).await;
    // Of before: done well; done without vectors; stuck; an old row that knows neither its owner nor its path.
    app.hand_in(1, "txt", "processing", b"Known.").await;
    app.parse(1, VECTOR).await;
    app.hand_in(2, "txt", "processing", b"Swallowed.").await;
    app.parse(2, "null").await;
    app.hand_in(3, "txt", "processing", b"Stuck for ever.").await;
    app.hand_in(4, "md", "pending", b"# Old\n\nFrom a workspace.").await;
    app.world
        .sql(&format!(
            "update public.documents set user_id = null, storage_path = null, project_id = 'c0000000-0000-4000-8000-0000000000c2', file_url = file_url || '?token=x' where id = '{}'",
            document(4)
        ))
        .await;
    assert_snapshot!(app.check().await, @r#"
    ok pipeline documents: "public"."documents" to "public"."chunks" by model small-3 (1536 dimensions); columns content, embedding, chunk_index, page_number, token_count, metadata; on the row page_count, word_count; status in processing_status
    ok pipeline memories: "public"."memories" to "public"."memories" itself by model small-3 (1536 dimensions); columns embedding
    warning configuration: pipelines.documents.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);
    app.world.work().await;
    assert_snapshot!(app.accept("documents").await, @r#"3 rows, 0 tokens, 3 files, "0" usd"#);
    app.world.work().await;
    assert_snapshot!(app.picture(&[DOCUMENTS, JOBS]).await, @"
    # documents
    01 01.txt completed | 2 chunks v1536
    02 02.txt completed words=1 at a time | 1 chunks tokens=3-3 v1536
    03 03.txt completed words=3 at a time | 1 chunks tokens=5-5 v1536
    04 04.md completed words=4 at a time | 1 chunks sections=1 levels=1 tokens=6-6 v1536
    # jobs
    documents 01 completed r1 attempts=0
    documents 02 completed r1 attempts=1
    documents 03 completed r1 attempts=1
    documents 04 completed r1 attempts=1
    ");

    // The request of the app finishes one without its vectors and dies over the next; the rest is left to us.
    app.world.install_triggers().await;
    app.vendor.poison("forbidden");
    app.hand_in(6, "txt", "completed", b"Without vectors.").await;
    app.hand_in(7, "txt", "processing", b"The request dies.").await;
    app.hand_in(8, "docx", "pending", &fixture("files/sqlite-datatype3.docx")).await;
    app.hand_in(9, "pdf", "pending", &fixture("files/sqlite-copyright-release.pdf")).await;
    let paragraph = "One long paragraph that never ends, word upon word upon word. ".repeat(120);
    app.hand_in(10, "txt", "pending", paragraph.as_bytes()).await;
    app.hand_in(11, "txt", "pending", b"A forbidden word.").await;
    app.hand_in(12, "pdf", "pending", &fixture("hostile/truncated.docx")).await;
    app.hand_in(13, "txt", "pending", b"").await;
    app.world.work().await;
    let waits = "select distinct state || ' ' || round(extract(epoch from run_at - opened_at)) from gristmill.embedding_jobs where state <> 'completed'";
    assert_eq!(app.world.list(waits).await, ["waiting 60"]);
    app.parse(6, "null").await;
    app.world.work().await;
    app.after_the_grace().await;
    app.world.work().await;
    assert_snapshot!(app.picture(&[DOCUMENTS, JOBS, LEDGER]).await, @"
    # documents
    01 01.txt completed | 2 chunks v1536
    02 02.txt completed words=1 at a time | 1 chunks tokens=3-3 v1536
    03 03.txt completed words=3 at a time | 1 chunks tokens=5-5 v1536
    04 04.md completed words=4 at a time | 1 chunks sections=1 levels=1 tokens=6-6 v1536
    06 06.txt completed words=2 at a time | 1 chunks tokens=3-3 v1536
    07 07.txt completed words=3 at a time | 1 chunks tokens=4-4 v1536
    08 08.docx completed words=4822 at a time | 27 chunks sections=18 levels=3 tokens=172-372 v1536
    09 09.pdf completed pages=1 words=567 at a time | 3 chunks pages 1-1 sections=2 levels=1 tokens=229-273 v1536
    10 10.txt completed words=1320 at a time | 6 chunks tokens=260-299 v1536
    11 11.txt failed at a time the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: A forbidden … |
    12 12.pdf failed at a time the file cannot be read as DOCX: its archive is damaged or cut short |
    13 13.txt failed at a time there is no text |
    # jobs
    documents 01 completed r1 attempts=0
    documents 02 completed r1 attempts=1
    documents 03 completed r1 attempts=1
    documents 04 completed r1 attempts=1
    documents 06 completed r1 attempts=1
    documents 07 completed r1 attempts=1
    documents 08 completed r1 attempts=1
    documents 09 completed r1 attempts=1
    documents 10 completed r1 attempts=1
    documents 11 failed r1 attempts=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: A forbidden …
    documents 12 failed r1 attempts=1 unreadable the file cannot be read as DOCX: its archive is damaged or cut short
    documents 13 skipped r1 attempts=0 skipped there is no text
    # ledger
    documents 02 r1 tenant=ee 3 tokens $0.00000006
    documents 03 r1 tenant=ee 5 tokens $0.00000010
    documents 04 r1 tenant=ee 6 tokens $0.00000012
    documents 06 r1 tenant=ee 3 tokens $0.00000006
    documents 07 r1 tenant=ee 4 tokens $0.00000008
    documents 08 r1 tenant=ee 6995 tokens $0.00013990
    documents 09 r1 tenant=ee 736 tokens $0.00001472
    documents 10 r1 tenant=ee 1755 tokens $0.00003510
    ");

    // The app's retry of what was made here: nothing is paid twice, and no chunk is there twice.
    let ids = "select string_agg(id::text, ' ' order by id) from public.chunks";
    let (before, paid) = (app.world.value::<String>(ids).await, app.vendor.paid_texts().len());
    app.world
        .sql("update public.documents set processing_status = 'pending' where processing_status = 'completed' and filename <> '01.txt'")
        .await;
    app.world.work().await;
    app.after_the_grace().await;
    app.world.work().await;
    assert_eq!(app.vendor.paid_texts().len(), paid);
    assert_eq!(app.world.value::<String>(ids).await, before);
    assert_eq!(
        app.world.list("select distinct processing_status from public.documents order by 1").await,
        ["completed", "failed"]
    );
}

#[tokio::test]
async fn what_the_app_finishes_in_time_is_left_as_it_is() {
    let app = App::new("yarnnn", "schema").await;
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    app.hand_in(1, "txt", "pending", b"In time.").await;
    app.world.work().await;
    app.parse(1, VECTOR).await;
    app.after_the_grace().await;
    app.world.work().await;
    assert_eq!(app.vendor.requests(), 0);
    assert_snapshot!(app.picture(&[DOCUMENTS, JOBS]).await, @"
    # documents
    01 01.txt completed | 2 chunks v1536
    # jobs
    documents 01 completed r1 attempts=1
    ");
}

#[tokio::test]
async fn a_file_that_was_replaced_is_read_when_the_app_asks_again() {
    let app = App::new("yarnnn", "schema").await;
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    app.hand_in(1, "txt", "pending", b"Rye.").await;
    app.world.work().await;
    app.after_the_grace().await;
    app.world.work().await;
    let path = format!("{EVE}/{}/original.txt", document(1));
    app.store.put("documents", &path, "text/plain", b"Wheat.");
    app.world.sql("update public.documents set processing_status = 'pending'").await;
    app.world.work().await;
    app.after_the_grace().await;
    app.world.work().await;
    assert_eq!(app.world.list("select content from public.chunks").await, ["Wheat."]);
}

#[tokio::test]
async fn a_quota_that_is_used_up_delays_documents_and_fails_none() {
    let app = App::new("yarnnn", "schema").await;
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    app.vendor.always(Answer::insufficient_quota());
    app.hand_in(1, "txt", "pending", b"Grain.").await;
    app.world.work().await;
    app.after_the_grace().await;
    app.world.work().await;
    assert_snapshot!(app.picture(&[DOCUMENTS, JOBS]).await, @"
    # documents
    01 01.txt pending |
    # jobs
    documents 01 waiting r1 attempts=0 credential the provider refuses the credential: insufficient quota, check its billing: status 429, insufficient_quota, insufficient_quota: You exceeded your current quota, please check your plan and billing details.
    ");
    app.vendor.always(None);
    app.world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    app.world.work().await;
    assert_snapshot!(app.picture(&[DOCUMENTS, JOBS]).await, @"
    # documents
    01 01.txt completed words=1 at a time | 1 chunks tokens=3-3 v1536
    # jobs
    documents 01 completed r1 attempts=1
    ");
}

#[tokio::test]
async fn memories_have_a_vector_while_they_are_active() {
    let app = App::new("yarnnn", "schema").await;
    app.world.sql(PEOPLE).await;
    let remember = |number: u8, content: &str, vector: &str| {
        AssertSqlSafe(format!(
            "insert into public.memories (id, user_id, content, embedding) values ('50000000-0000-4000-8000-0000000000{number:02}', '{EVE}', '{content}', {vector})"
        ))
    };
    let mut owner = app.world.database.connect().await;
    owner.execute(remember(1, "Likes bread.", VECTOR)).await.unwrap();
    owner.execute(remember(2, "Owns a mill.", "null")).await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.accept("memories").await, @r#"1 rows, 5 tokens, 0 files, "0.00000010" usd"#);

    app.world.install_triggers().await;
    let mut eve = app.user(EVE).await;
    eve.execute(remember(3, "Wakes at five.", "null")).await.unwrap();
    eve.execute(remember(4, "Put away at once.", "null")).await.unwrap();
    eve.execute("update public.memories set is_active = false where content like 'Put away%'").await.unwrap();
    app.world.work().await;
    eve.execute("update public.memories set content = 'Wakes at six.', updated_at = now() where content like 'Wakes%'")
        .await
        .unwrap();
    eve.execute("update public.memories set is_active = false where content like 'Likes%'").await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[MEMORIES, JOBS, LEDGER]).await, @"
    # memories
    01 Likes bread. put away | no vector
    02 Owns a mill. | v1536
    03 Wakes at six. | v1536
    04 Put away at once. put away | no vector
    # jobs
    memories 01 cancelled r2 attempts=0 left source row is not in the set
    memories 02 completed r1 attempts=1
    memories 03 completed r2 attempts=1
    memories 04 cancelled r2 attempts=0 left source row is not in the set
    # ledger
    memories 02 r1 tenant=ee 5 tokens $0.00000010
    memories 03 r1 tenant=ee 5 tokens $0.00000010
    memories 03 r2 tenant=ee 5 tokens $0.00000010
    ");
}
