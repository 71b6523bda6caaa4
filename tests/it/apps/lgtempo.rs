//! LGtempo, a coaching app: pgvector in another schema, vectors without dimensions, documents that are a text or a file, nodes
//! whose text depends on what they are.

use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{App, JOBS, LEDGER, STANDING, fixture};
use crate::fake_openai::Answer;

const UMA: &str = "a0000000-0000-4000-8000-0000000000aa";
const AGENT: &str = "e0000000-0000-4000-8000-0000000000ee";

const PEOPLE: &str = "insert into auth.users values ('a0000000-0000-4000-8000-0000000000aa'); \
    insert into public.agent_personae values ('e0000000-0000-4000-8000-0000000000ee', 'Coach'); \
    insert into public.agent_knowledge_bases (id, agent_id, name) values \
        ('b0000000-0000-4000-8000-0000000000b1', 'e0000000-0000-4000-8000-0000000000ee', 'Habits'), \
        ('b0000000-0000-4000-8000-0000000000b2', 'e0000000-0000-4000-8000-0000000000ee', 'Sleep');";

const DOCUMENTS: (&str, &str) = (
    "documents",
    "select concat_ws(' ', test.id(d.id), 'base=' || test.id(knowledge_base_id), d.title, 'chunks=' || chunk_count, '|', left(regexp_replace(content, '\\s+', ' ', 'g'), 40), '|', c.n, c.longest, c.vectors, c.metadata) \
     from public.knowledge_documents d left join lateral ( \
         select nullif(count(*), 0) || ' chunks', 'longest=' || max(length(content)), string_agg(distinct test.vector(embedding), ' and '), min(metadata::text) \
         from public.knowledge_chunks where document_id = d.id) as c (n, longest, vectors, metadata) on true order by d.id",
);

const BASES: (&str, &str) = (
    "bases",
    "select concat_ws(' ', name, 'documents=' || document_count, 'chunks=' || total_chunks, indexing_status) from public.agent_knowledge_bases order by id",
);

const NODES: (&str, &str) = (
    "nodes",
    "select concat_ws(' ', test.id(id), node_type, label, case when deleted_at is not null then 'deleted' end, '|', test.vector(embedding)) \
     from public.graph_nodes order by id",
);

const QUEUE: (&str, &str) = (
    "queue",
    "select concat_ws(' ', test.id(node_id), status, error_message, case when processed_at is not null then 'at a time' end) from public.embedding_queue order by node_id",
);

/// A vector that looks like any other.
const RANDOM: &str = "array_fill(0.5::real, array[1536])::extensions.vector";

fn document(number: u8, base: u8, title: &str, content: &str, path: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into public.knowledge_documents (id, knowledge_base_id, title, content, source_url) values \
         ('d0000000-0000-4000-8000-0000000000{number:02}', 'b0000000-0000-4000-8000-0000000000b{base}', '{title}', '{content}', nullif('{path}', ''))"
    ))
}

fn node(number: u8, kind: &str, label: &str, description: &str, properties: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into public.graph_nodes (id, user_id, node_type, label, description, properties) values \
         ('50000000-0000-4000-8000-0000000000{number:02}', '{UMA}', '{kind}', '{label}', nullif('{description}', ''), '{properties}')"
    ))
}

#[tokio::test]
async fn documents_are_texts_or_files_and_their_bases_are_counted() {
    let app = App::new("lgtempo", "production").await;
    app.store.bucket("documents");
    app.world.sql(PEOPLE).await;
    let mut owner = app.world.database.connect().await;
    // Of before: a document whose chunks are there twice, with random vectors.
    owner.execute(document(1, 1, "Old", "Habits are small.", "")).await.unwrap();
    owner
        .execute(AssertSqlSafe(format!(
            "insert into public.knowledge_chunks (document_id, content, chunk_index, embedding) \
             select 'd0000000-0000-4000-8000-000000000001', 'Habits are small.', 0, {RANDOM} from generate_series(1, 2)"
        )))
        .await
        .unwrap();
    assert_snapshot!(app.check().await, @r#"
    ok pipeline documents: "public"."knowledge_documents" to "public"."knowledge_chunks" by model small-3 (1536 dimensions); columns content, embedding, chunk_index, metadata; on the row content, chunk_count, updated_at; effect counters: update public.agent_knowledge_bases
    warning configuration: pipelines.documents.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning pipeline nodes: pipelines.nodes.target.columns.embedding: table public.graph_nodes has no column embedding; it has id, user_id, node_type, label, description, properties, created_at, updated_at, deleted_at
    warning pipeline nodes: pipelines.nodes.target: target.columns must map {chunk.vector} to a column that exists
    "#);
    app.world.work().await;
    assert_snapshot!(app.accept("documents").await, @r#"1 rows, 6 tokens, 0 files, "0.00000012" usd"#);
    app.world.install_triggers().await;

    let path = |name: &str| format!("knowledge/{AGENT}/1754126144000-{name}");
    app.store.put("documents", &path("release.pdf"), "application/pdf", &fixture("files/sqlite-copyright-release.pdf"));
    app.store.put("documents", "knowledge/other/1-secret.txt", "text/plain", b"Not yours.");
    let placeholder = |name: &str| format!("Content from {name} - processing required");
    let long: String = (1..=100).map(|nth| format!("Rest {nth} comes before work {nth}, and so on. ")).collect();
    for insert in [
        document(2, 1, "Release", &placeholder("release.pdf"), &path("release.pdf")),
        document(3, 1, "Long", &long, ""),
        document(4, 2, "Stolen", &placeholder("secret.txt"), "knowledge/other/1-secret.txt"),
        document(5, 2, "Gone", &placeholder("gone.pdf"), &path("gone.pdf")),
        document(6, 2, "Empty", " ", ""),
        document(7, 2, "Sleep", "Sleep eight hours.", ""),
    ] {
        owner.execute(insert).await.unwrap();
    }
    let workers = [app.world.start().await, app.world.start().await];
    for worker in &workers {
        worker.idle().await;
    }
    for worker in workers {
        worker.stop().await;
    }
    let mut paid = app.vendor.paid_texts();
    paid.sort_unstable();
    let all = paid.len();
    paid.dedup();
    assert_eq!(paid.len(), all, "two workers pay for nothing twice");
    assert!(app.vendor.requests() < all / 2, "{} requests for {all} texts", app.vendor.requests());
    assert_snapshot!(app.picture(&[DOCUMENTS, BASES, JOBS, LEDGER]).await, @r#"
    # documents
    01 base=b1 Old chunks=1 | Habits are small. | 1 chunks longest=17 v1536 {"title": "Old"}
    02 base=b1 Release chunks=4 | Copyright Release for Contributions To S | 4 chunks longest=1363 v1536 {"page": 1, "title": "Release", "section": "Contributions To SQLite"}
    03 base=b1 Long chunks=5 | Rest 1 comes before work 1, and so on. R | 5 chunks longest=1393 v1536 {"title": "Long"}
    04 base=b2 Stolen chunks=0 | Content from secret.txt - processing req |
    05 base=b2 Gone chunks=0 | Content from gone.pdf - processing requi |
    06 base=b2 Empty chunks=0 |   |
    07 base=b2 Sleep chunks=1 | Sleep eight hours. | 1 chunks longest=18 v1536 {"title": "Sleep"}
    # bases
    Habits documents=3 chunks=10 completed
    Sleep documents=4 chunks=1 completed
    # jobs
    documents 01 completed r1 attempts=1
    documents 02 completed r1 attempts=1
    documents 03 completed r1 attempts=1
    documents 04 failed r1 attempts=1 file the path does not lie below what `within` says
    documents 05 failed r1 attempts=1 file knowledge/e0000000-0000-4000-8000-0000000000ee/1754126144000-gone.pdf in store documents is not there
    documents 06 skipped r1 attempts=0 skipped there is no text
    documents 07 completed r1 attempts=1
    # ledger
    documents 01 r1 tenant=ee 6 tokens $0.00000012
    documents 02 r1 tenant=ee 742 tokens $0.00001484
    documents 03 r1 tenant=ee 1508 tokens $0.00003016
    documents 07 r1 tenant=ee 4 tokens $0.00000008
    "#);

    // A text is edited, another emptied, a document deleted, a placeholder's file arrives after all.
    app.store.put("documents", &path("gone.pdf"), "text/plain", b"Here after all.");
    owner
        .execute("update public.knowledge_documents set content = 'Sleep nine hours.' where title = 'Sleep'")
        .await
        .unwrap();
    owner.execute("update public.knowledge_documents set content = '' where title = 'Old'").await.unwrap();
    owner.execute("delete from public.knowledge_documents where title = 'Long'").await.unwrap();
    owner.execute("select gristmill.enqueue('documents', id) from public.knowledge_documents where title in ('Gone', 'Release')").await.unwrap();
    app.world.work().await;
    assert_eq!(app.vendor.paid_texts().len(), all + 2);
    assert_snapshot!(app.picture(&[DOCUMENTS, BASES]).await, @r#"
    # documents
    01 base=b1 Old chunks=0 |  |
    02 base=b1 Release chunks=4 | Copyright Release for Contributions To S | 4 chunks longest=1363 v1536 {"title": "Release"}
    04 base=b2 Stolen chunks=0 | Content from secret.txt - processing req |
    05 base=b2 Gone chunks=1 | Here after all. | 1 chunks longest=15 v1536 {"title": "Gone"}
    06 base=b2 Empty chunks=0 |   |
    07 base=b2 Sleep chunks=1 | Sleep nine hours. | 1 chunks longest=17 v1536 {"title": "Sleep"}
    # bases
    Habits documents=2 chunks=4 completed
    Sleep documents=4 chunks=2 completed
    "#);
}

#[tokio::test]
async fn nodes_are_embedded_by_what_they_are_and_the_queue_is_answered() {
    let app = App::new("lgtempo", "migrations").await;
    app.store.bucket("documents");
    app.world.sql(PEOPLE).await;
    let mut owner = app.world.database.connect().await;
    owner.execute(node(1, "goal", "Old goal", "", "{}")).await.unwrap();
    owner.execute(AssertSqlSafe(format!("update public.graph_nodes set embedding = {RANDOM}"))).await.unwrap();
    assert_snapshot!(app.check().await, @r#"
    ok pipeline documents: "public"."knowledge_documents" to "public"."knowledge_chunks" by model small-3 (1536 dimensions); columns content, embedding, chunk_index, metadata; on the row content, chunk_count, updated_at; effect counters: update public.agent_knowledge_bases
    ok pipeline nodes: "public"."graph_nodes" to "public"."graph_nodes" itself by model small-3 (1536 dimensions); columns embedding; asked by "public"."embedding_queue"
    warning configuration: pipelines.documents.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.nodes.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);
    app.world.work().await;
    assert_snapshot!(app.accept("nodes").await, @r#"1 rows, 4 tokens, 0 files, "0.00000008" usd"#);

    app.vendor.poison("forbidden");
    let mut uma = app.user(UMA).await;
    for insert in [
        node(
            2,
            "goal",
            "Run",
            "Ten miles.",
            r#"{"category": "health", "priority": "high", "target_date": "2026-09-01"}"#,
        ),
        node(3, "skill", "Listening", "", r#"{"level": 3}"#),
        node(4, "session", "First talk", "We met.", r#"{"duration": "30 min", "topics": ["rest", "work"]}"#),
        node(5, "belief", "I can", "forbidden", "{}"),
        node(6, "belief", "I may", "Always.", r#"{"topics": "none"}"#),
        node(7, "emotion", "Joy", "", r#"{"emotion": "joy", "intensity": 0.8}"#),
        node(8, "accomplishment", "Ran", "", r#"{"impact": "large", "evidence": null}"#),
    ] {
        uma.execute(insert).await.unwrap();
    }
    owner.execute("insert into public.embedding_queue (node_id, content) select id, 'whatever' from public.graph_nodes where label in ('Run', 'I can', 'Old goal')").await.unwrap();
    app.world.work().await;
    let mut texts = app.vendor.paid_texts();
    texts.sort_unstable();
    assert_snapshot!(texts.join("\n--\n"), @"
    accomplishment: Ran
    Impact: large
    --
    belief: I may
    Description: Always.
    --
    emotion: Joy
    Emotion: joy
    Intensity: 0.8
    --
    goal: Old goal
    --
    goal: Run
    Description: Ten miles.
    Category: health
    Priority: high
    Target Date: 2026-09-01
    --
    session: First talk
    Description: We met.
    Duration: 30 min
    Topics: rest, work
    --
    skill: Listening
    Level: 3
    ");
    assert_snapshot!(app.picture(&[NODES, QUEUE, STANDING]).await, @"
    # nodes
    01 goal Old goal | v1536
    02 goal Run | v1536
    03 skill Listening | v1536
    04 session First talk | v1536
    05 belief I can | no vector
    06 belief I may | v1536
    07 emotion Joy | v1536
    08 accomplishment Ran | v1536
    # queue
    01 completed at a time
    02 completed at a time
    05 failed the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: … at a time
    # jobs
    nodes 01 completed
    nodes 02 completed
    nodes 03 completed
    nodes 04 completed
    nodes 05 failed refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
    nodes 06 completed
    nodes 07 completed
    nodes 08 completed
    ");

    // A node is deleted softly and another one later comes back; the poison stays aside, and nobody waits for it.
    uma.execute("update public.graph_nodes set deleted_at = now() where label in ('Run', 'Joy')").await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[NODES]).await, @"
    # nodes
    01 goal Old goal | v1536
    02 goal Run deleted | no vector
    03 skill Listening | v1536
    04 session First talk | v1536
    05 belief I can | no vector
    06 belief I may | v1536
    07 emotion Joy deleted | no vector
    08 accomplishment Ran | v1536
    ");
    uma.execute("update public.graph_nodes set deleted_at = null where label = 'Joy'").await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[NODES]).await, @"
    # nodes
    01 goal Old goal | v1536
    02 goal Run deleted | no vector
    03 skill Listening | v1536
    04 session First talk | v1536
    05 belief I can | no vector
    06 belief I may | v1536
    07 emotion Joy | v1536
    08 accomplishment Ran | v1536
    ");
}

#[tokio::test]
async fn nodes_with_a_status_tell_it() {
    let status = "alter table public.graph_nodes add embedding_status text not null default 'pending' \
            check (embedding_status in ('pending', 'generating', 'completed', 'failed')), add embedding_generated_at timestamptz; \
        drop table public.embedding_queue";
    let app = App::changed("lgtempo", "migrations", status).await;
    app.store.bucket("documents");
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    app.vendor.poison("forbidden");
    let mut uma = app.user(UMA).await;
    uma.execute(node(1, "goal", "Run", "", "{}")).await.unwrap();
    uma.execute(node(2, "goal", "A forbidden word", "", "{}")).await.unwrap();
    app.world.work().await;
    let nodes = (
        "nodes",
        "select concat_ws(' ', label, embedding_status, case when embedding_generated_at is not null then 'at a time' end, test.vector(embedding)) \
         from public.graph_nodes order by id",
    );
    assert_snapshot!(app.picture(&[nodes]).await, @"
    # nodes
    Run completed at a time v1536
    A forbidden word failed at a time no vector
    ");
}

#[tokio::test]
async fn without_a_good_key_no_vector_is_made_up() {
    let app = App::new("lgtempo", "migrations").await;
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    app.vendor.always(Answer::unauthorized("sk-only-for-tests"));
    let mut uma = app.user(UMA).await;
    uma.execute(node(1, "goal", "Run", "", "{}")).await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[NODES, JOBS, LEDGER]).await, @"
    # nodes
    01 goal Run | no vector
    # jobs
    nodes 01 waiting r1 attempts=0 credential the provider refuses the credential: status 401, invalid_request_error, invalid_api_key: Incorrect API key provided: …
    # ledger
    –
    ");
}
