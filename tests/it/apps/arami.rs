//! Arami, a voice companion: nothing to write to, so that vectors of its sessions go to a table of ours.

use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{App, JOBS, LEDGER};

const MARA: &str = "a0000000-0000-4000-8000-0000000000aa";
const JON: &str = "b0000000-0000-4000-8000-0000000000bb";

/// A session's id, by its last two digits.
fn session(number: u8) -> String {
    format!("50000000-0000-4000-8000-0000000000{number:02}")
}

/// A talk of so many sentences, ten tokens each or so.
fn talk(sentences: usize) -> String {
    (1..=sentences).map(|nth| format!("Mara said that morning number {nth} felt calm. ")).collect()
}

const VECTORS: (&str, &str) = (
    "vectors",
    "select concat_ws(' ', test.id(session_id), 'of=' || test.id(user_id), chunk_index, left(content, 38), 'tokens=' || token_count, test.vector(embedding), metadata) \
     from public.session_vectors order by session_id, chunk_index",
);

const ANALYTICS: (&str, &str) = (
    "analytics",
    "select concat_ws(' ', test.id(session_id), 'of=' || test.id(user_id), metric_name, metric_value, metric_unit) \
     from public.session_analytics order by session_id, metric_name",
);

/// Inserts a session as the phone does.
fn insert(number: u8, user: &str, status: &str, transcript: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into public.daily_sessions (id, user_id, session_type, session_status, conversation_transcript, session_date) \
         values ('{}', '{user}', 'spoken_presence', '{status}', nullif('{transcript}', '-'), '2026-03-0{number}')",
        session(number)
    ))
}

#[tokio::test]
async fn sessions_are_searched_by_their_owners_and_measured() {
    let app = App::new("arami", "document").await;
    app.world.sql(&format!("insert into public.users (id, name) values ('{MARA}', 'Mara'), ('{JON}', 'Jon')")).await;
    let mut owner = app.world.database.connect().await;
    owner.execute(insert(1, MARA, "completed", "I slept well and woke early.")).await.unwrap();
    owner.execute(insert(2, JON, "in_progress", "-")).await.unwrap();
    assert_snapshot!(app.check().await, @r#"
    warning pipeline sessions: its target is not there yet: a worker makes it when it starts
    ok pipeline sessions: "public"."daily_sessions" to "public"."session_vectors" by model small-3 (1536 dimensions); columns user_id, chunk_index, content, token_count, embedding, metadata; effect analytics: insert public.session_analytics; effect analytics-gone: delete public.session_analytics
    warning configuration: pipelines.sessions.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);

    app.world.work().await;
    assert_snapshot!(app.accept("sessions").await, @r#"1 rows, 7 tokens, 0 files, "0.00000014" usd"#);
    app.world.install_triggers().await;

    // The phone ends a session, begins and ends another; a talk may be empty, or refused by the vendor.
    let mut mara = app.user(MARA).await;
    app.vendor.poison("forbidden");
    mara.execute(insert(3, MARA, "completed", &talk(70))).await.unwrap();
    mara.execute(insert(4, MARA, "completed", "  ")).await.unwrap();
    mara.execute(insert(5, MARA, "completed", "A forbidden word.")).await.unwrap();
    mara.execute(insert(6, MARA, "interrupted", "We stopped.")).await.unwrap();
    let mut jon = app.user(JON).await;
    let end = "update public.daily_sessions set session_status = 'completed', conversation_transcript = 'I ran by the river.'";
    jon.execute(end).await.unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[VECTORS, ANALYTICS, JOBS, LEDGER]).await, @r#"
    # vectors
    01 of=aa 0 I slept well and woke early. tokens=7 v1536 {"session_date": "2026-03-01", "session_type": "spoken_presence"}
    02 of=bb 0 I ran by the river. tokens=6 v1536 {"session_date": "2026-03-02", "session_type": "spoken_presence"}
    03 of=aa 0 Mara said that morning number 1 felt c tokens=331 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    03 of=aa 1 Mara said that morning number 30 felt  tokens=181 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    03 of=aa 2 Mara said that morning number 44 felt  tokens=271 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    # analytics
    01 of=aa transcript_chunks 1.0000 chunks
    01 of=aa transcript_tokens 7.0000 tokens
    01 of=aa transcript_words 6.0000 words
    02 of=bb transcript_chunks 1.0000 chunks
    02 of=bb transcript_tokens 6.0000 tokens
    02 of=bb transcript_words 5.0000 words
    03 of=aa transcript_chunks 3.0000 chunks
    03 of=aa transcript_tokens 702.0000 tokens
    03 of=aa transcript_words 560.0000 words
    # jobs
    sessions 01 completed r1 attempts=1
    sessions 02 completed r1 attempts=1
    sessions 03 completed r1 attempts=1
    sessions 04 skipped r1 attempts=0 skipped there is no text
    sessions 05 failed r1 attempts=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: A forbidden …
    # ledger
    sessions 01 r1 tenant=aa 7 tokens $0.00000014
    sessions 02 r1 tenant=bb 6 tokens $0.00000012
    sessions 03 r1 tenant=aa 783 tokens $0.00001566
    "#);

    let seen = "select string_agg(distinct test.id(user_id), ',') from public.session_vectors";
    assert_eq!(sqlx::query_scalar::<_, String>(seen).fetch_one(&mut mara).await.unwrap(), "aa");
    assert_eq!(sqlx::query_scalar::<_, String>(seen).fetch_one(&mut jon).await.unwrap(), "bb");
    jon.execute("delete from public.session_vectors").await.unwrap_err();
    jon.execute("reset role; set role anon").await.unwrap();
    jon.execute("select from public.session_vectors").await.unwrap_err();

    // A transcript is corrected at its end, a session is taken back, a user leaves.
    let paid = app.vendor.paid_texts().len();
    let correct = format!(
        "update public.daily_sessions set conversation_transcript = conversation_transcript || 'And so it ended.' where id = '{}'",
        session(3)
    );
    mara.execute(AssertSqlSafe(correct)).await.unwrap();
    let back = format!("update public.daily_sessions set session_status = 'interrupted' where id = '{}'", session(1));
    mara.execute(AssertSqlSafe(back)).await.unwrap();
    owner.execute(AssertSqlSafe(format!("delete from public.users where id = '{JON}'"))).await.unwrap();
    app.world.work().await;
    assert_eq!(app.vendor.paid_texts().len(), paid + 1, "the chunks that did not change are not paid again");
    assert_snapshot!(app.picture(&[VECTORS, ANALYTICS, JOBS, LEDGER]).await, @r#"
    # vectors
    03 of=aa 0 Mara said that morning number 1 felt c tokens=331 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    03 of=aa 1 Mara said that morning number 30 felt  tokens=181 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    03 of=aa 2 Mara said that morning number 44 felt  tokens=276 v1536 {"session_date": "2026-03-03", "session_type": "spoken_presence"}
    # analytics
    03 of=aa transcript_chunks 3.0000 chunks
    03 of=aa transcript_tokens 706.0000 tokens
    03 of=aa transcript_words 564.0000 words
    # jobs
    sessions 01 cancelled r2 attempts=0 left source row is not in the set
    sessions 02 cancelled r2 attempts=0 left source row is gone
    sessions 03 completed r2 attempts=1
    sessions 04 skipped r1 attempts=0 skipped there is no text
    sessions 05 failed r1 attempts=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: A forbidden …
    # ledger
    sessions 01 r1 tenant=aa 7 tokens $0.00000014
    sessions 02 r1 tenant=bb 6 tokens $0.00000012
    sessions 03 r1 tenant=aa 783 tokens $0.00001566
    sessions 03 r2 tenant=aa 2 vectors $0
    sessions 03 r2 tenant=aa 276 tokens $0.00000552
    "#);
}

#[tokio::test]
async fn without_analytics_and_triggers_the_sweep_finds_sessions_and_says_what_is_left_out() {
    let app = App::new("arami", "migration").await;
    app.world
        .sql(&format!(
            "insert into auth.users values ('{MARA}'); insert into public.profiles values ('{MARA}', 'Mara')"
        ))
        .await;
    assert_snapshot!(app.check().await, @r#"
    warning pipeline sessions: its target is not there yet: a worker makes it when it starts
    ok pipeline sessions: "public"."daily_sessions" to "public"."session_vectors" by model small-3 (1536 dimensions); columns user_id, chunk_index, content, token_count, embedding, metadata
    warning configuration: pipelines.sessions.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.sessions.effects[0].sql: effect analytics is left out: Postgres says: relation "public.session_analytics" does not exist
    warning configuration: pipelines.sessions.effects[1].sql: effect analytics-gone is left out: Postgres says: relation "public.session_analytics" does not exist
    "#);
    app.world.work().await;

    let mut owner = app.world.database.connect().await;
    owner.execute(insert(1, MARA, "completed", "I slept well and woke early.")).await.unwrap();
    owner.execute(insert(2, MARA, "completed", "I ran by the river.")).await.unwrap();
    app.world.work().await;
    owner
        .execute(AssertSqlSafe(format!("delete from public.daily_sessions where id = '{}'", session(2))))
        .await
        .unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[VECTORS, JOBS]).await, @r#"
    # vectors
    01 of=aa 0 I slept well and woke early. tokens=7 v1536 {"session_date": "2026-03-01", "session_type": "spoken_presence"}
    # jobs
    sessions 01 completed r1 attempts=1
    sessions 02 cancelled r2 attempts=0 left source row is gone
    "#);
}

#[tokio::test]
async fn a_database_without_pgvector_is_told_what_to_create() {
    let app = App::changed("arami", "document", "drop extension vector").await;
    let said = app.unfit().await;
    assert!(said.contains("to mend it: create extension vector;"), "{said}");
}
