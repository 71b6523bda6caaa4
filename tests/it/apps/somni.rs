//! Somni, a dream journal: dreams that its own job table asks for, and others that it forgets; chunks linked to themes.

use insta::assert_snapshot;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{App, LEDGER, STANDING};
use crate::fake_openai::vector_of;
use crate::transcripts::wav;

const UMA: &str = "a0000000-0000-4000-8000-0000000000aa";
const VIC: &str = "b0000000-0000-4000-8000-0000000000bb";

const PEOPLE: &str = "insert into auth.users values ('a0000000-0000-4000-8000-0000000000aa'), ('b0000000-0000-4000-8000-0000000000bb'); \
    insert into public.conversations values ('c0000000-0000-4000-8000-0000000000ca', 'a0000000-0000-4000-8000-0000000000aa');";

const DREAMS: (&str, &str) = (
    "dreams",
    "select concat_ws(' ', test.id(d.id), transcription_status, embedding_status, 'attempts=' || embedding_attempts, \
         case when embedding_processed_at > embedding_started_at then 'at a time' end, embedding_error, '|', e.n, e.tokens, e.vectors, e.versions, '|', t.links) \
     from public.dreams d left join lateral ( \
         select nullif(count(*), 0) || ' chunks', 'tokens=' || min(token_count) || '-' || max(token_count), string_agg(distinct test.vector(embedding), ' and '), \
             string_agg(distinct embedding_version, ' and ') from public.dream_embeddings where dream_id = d.id) as e (n, tokens, vectors, versions) on true \
     left join lateral (select string_agg(theme_code || ' ' || round(similarity::numeric, 2) || ' in ' || chunk_index, ', ' order by similarity desc) \
         from public.dream_themes where dream_id = d.id) as t (links) on true order by d.id",
);

/// A job row, whatever its times are called.
const QUEUE: (&str, &str) = (
    "embedding_jobs",
    "select concat_ws(' ', test.id(dream_id), status, 'attempts=' || attempts, error_message, \
         case when coalesce(j->>'started_at', j->>'processing_started_at') < coalesce(j->>'completed_at', j->>'processing_completed_at') then 'timed' end) \
     from public.embedding_jobs, to_jsonb(embedding_jobs) as j order by dream_id",
);

const THEMES: (&str, &str) =
    ("themes", "select concat_ws(' ', code, label, '|', test.vector(embedding)) from public.themes order by code");

const FLYING: &str = "I was flying over a house beside the sea, and it was winter.";

fn id(number: u8) -> String {
    format!("d0000000-0000-4000-8000-0000000000{number:02}")
}

/// A dream as it comes from the phone, transcribed.
fn dream(number: u8, user: &str, status: &str, transcript: &str, language: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into public.dreams (id, user_id, raw_transcript, transcription_status, transcription_metadata) \
         values ('{}', '{user}', nullif('{transcript}', ''), '{status}', jsonb_build_object('language', '{language}'))",
        id(number)
    ))
}

fn literal(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("'[{}]'", numbers.join(","))
}

/// A theme that is so close to what the vendor makes of a text.
fn theme(code: &str, text: &str, cosine: f32) -> AssertSqlSafe<String> {
    let (near, far) = (vector_of(text, 1024), vector_of(code, 1024));
    let rest = (1.0 - cosine * cosine).sqrt();
    let mixed: Vec<f32> = near.iter().zip(far).map(|(near, far)| near * cosine + far * rest).collect();
    AssertSqlSafe(format!(
        "insert into public.themes (code, label, embedding) values ('{code}', 'The {code}', {})",
        literal(&mixed)
    ))
}

#[tokio::test]
async fn dreams_are_embedded_asked_for_or_not_and_linked_to_themes() {
    let app = App::new("somni", "clean").await;
    app.store.bucket("audio-messages");
    app.world.sql(PEOPLE).await;
    let mut owner = app.world.database.connect().await;
    for (code, cosine) in [
        ("water", 0.95),
        ("flight", 0.9),
        ("winter", 0.85),
        ("home", 0.8),
        ("sky", 0.75),
        ("birds", 0.7),
        ("teeth", 0.4),
    ] {
        owner.execute(theme(code, FLYING, cosine)).await.unwrap();
    }
    // Of before: done well; half done by a function that died at its third attempt; a vector of zeros.
    for number in 1..=3 {
        let text = format!("An old dream, number {number}, that went on for a good while.");
        owner.execute(dream(number, UMA, "completed", &text, "en")).await.unwrap();
        let vector = if number == 3 { vec![0.0; 1024] } else { vector_of(&text, 1024) };
        let chunk = format!(
            "insert into public.dream_embeddings (dream_id, chunk_index, chunk_text, token_count, embedding) values ('{0}', 0, 'Old.', 2, {1}), ('{0}', 7, 'Old.', 2, {1})",
            id(number),
            literal(&vector)
        );
        owner.execute(AssertSqlSafe(chunk)).await.unwrap();
    }
    owner
        .execute(AssertSqlSafe(format!(
            "update public.dreams set embedding_status = 'completed'; update public.dreams set embedding_status = 'processing', embedding_attempts = 3 where id = '{0}'; \
             insert into public.embedding_jobs (dream_id, status, attempts) values ('{0}', 'processing', 3); delete from public.dream_embeddings where dream_id = '{0}' and chunk_index = 7; \
             update public.dream_embeddings set embedding_version = 'minilm' where dream_id = '{0}'",
            id(2)
        )))
        .await
        .unwrap();
    assert_snapshot!(app.check().await, @r#"
    ok pipeline transcripts: recordings of "public"."dreams" transcribed by model scribe; on the row raw_transcript, transcription_metadata; status in transcription_status; effect usage (2 of 2 alternatives): insert public.transcription_usage
    ok pipeline themes: "public"."themes" to "public"."themes" itself by model bge-m3 (1024 dimensions); columns embedding
    ok pipeline dreams: "public"."dreams" to "public"."dream_embeddings" by model bge-m3 (1024 dimensions); columns chunk_index, chunk_text, token_count, embedding, processing_time_ms, metadata; status in embedding_status; asked by "public"."embedding_jobs"; effect themes: delete public.dream_themes, insert public.dream_themes
    ok pipeline fragments: "public"."knowledge_fragments" to "public"."knowledge_fragments" itself by model bge-m3 (1024 dimensions); columns embedding; effect themes: delete public.fragment_themes, insert public.fragment_themes
    ok pipeline messages: "public"."messages" to "public"."messages" itself by model minilm (384 dimensions); columns embedding
    warning configuration: pipelines.themes.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.dreams.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.fragments.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.messages.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning pipeline knowledge: pipelines.knowledge.target.columns.embedding_bge: table public.knowledge_base has no column embedding_bge; it has id, content, embedding, metadata
    warning pipeline knowledge: pipelines.knowledge.target: target.columns must map {chunk.vector} to a column that exists
    "#);
    app.world.work().await;
    assert_snapshot!(app.accept("dreams").await, @r#"2 rows, 32 tokens, 0 files, "0" usd"#);
    app.world.install_triggers().await;

    // Typed, transcribed, short, of another language, long and without a full stop, refused.
    app.vendor.poison("forbidden");
    let mut uma = app.user(UMA).await;
    uma.execute(dream(4, UMA, "completed", FLYING, "en")).await.unwrap();
    let long: String = (1..=900).map(|nth| format!("then {nth} ")).collect();
    let spoken = [
        (5, "We walked along a river until it became a street of glass.", "eng"),
        (6, "I fell.", "eng"),
        (7, "Ich ging einen langen Weg am Wasser entlang nach Hause.", "deu"),
        (8, long.as_str(), "eng"),
        (9, "A forbidden word was spoken, and nobody in the room heard it.", "eng"),
    ];
    for (number, _, _) in spoken {
        uma.execute(dream(number, UMA, "processing", "", "")).await.unwrap();
    }
    app.world.work().await;
    for (number, transcript, language) in spoken {
        let transcribed = format!(
            "update public.dreams set raw_transcript = '{transcript}', transcription_status = 'completed', \
                 transcription_metadata = '{{\"language\": \"{language}\"}}' where id = '{}'",
            id(number)
        );
        uma.execute(AssertSqlSafe(transcribed)).await.unwrap();
    }
    app.world.work().await;
    assert_snapshot!(app.picture(&[DREAMS, QUEUE, THEMES, STANDING]).await, @r#"
    # dreams
    01 completed completed attempts=0 | 2 chunks tokens=2-2 v1024 bge-m3-v1 |
    02 completed completed attempts=1 at a time | 2 chunks tokens=2-16 v1024 bge-m3-v1 and minilm |
    03 completed completed attempts=1 at a time | 1 chunks tokens=16-16 v1024 bge-m3-v1 |
    04 completed completed attempts=1 at a time | 1 chunks tokens=15-15 v1024 bge-m3-v1 | water 0.95 in 0, flight 0.90 in 0, winter 0.85 in 0, home 0.80 in 0, sky 0.75 in 0
    05 completed completed attempts=1 at a time | 1 chunks tokens=13-13 v1024 bge-m3-v1 |
    06 completed skipped attempts=0 at a time the text has only 7 characters | |
    07 completed skipped attempts=0 at a time skip.when holds for the row | |
    08 completed completed attempts=1 at a time | 6 chunks tokens=342-654 v1024 bge-m3-v1 |
    09 completed failed attempts=1 at a time the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: … | |
    # embedding_jobs
    02 completed attempts=1 timed
    05 completed attempts=1 timed
    06 completed attempts=0 the text has only 7 characters timed
    07 completed attempts=0 skip.when holds for the row timed
    08 completed attempts=1 timed
    09 failed attempts=1 the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: … timed
    # themes
    birds The birds | v1024
    flight The flight | v1024
    home The home | v1024
    sky The sky | v1024
    teeth The teeth | v1024
    water The water | v1024
    winter The winter | v1024
    # jobs
    dreams 01 completed
    dreams 02 completed
    dreams 03 completed
    dreams 04 completed
    dreams 05 completed
    dreams 06 skipped skipped the text has only 7 characters
    dreams 07 skipped skipped skip.when holds for the row
    dreams 08 completed
    dreams 09 failed refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
    themes ds completed
    themes ht completed
    themes me completed
    themes ky completed
    themes th completed
    themes er completed
    themes er completed
    transcripts 01 skipped skipped was there before, and existing = "ignore"
    transcripts 02 skipped skipped was there before, and existing = "ignore"
    transcripts 03 skipped skipped was there before, and existing = "ignore"
    "#);
    assert_eq!(app.vendor.paid(FLYING), 1);

    // Somebody else asks for a dream that is done: nothing is paid. One is transcribed again, one is deleted, a theme is new and near.
    let paid = app.vendor.paid_texts().len();
    let near = format!(
        "update public.themes set embedding = (select embedding from public.dream_embeddings where dream_id = '{}' and chunk_index = 1) where code = 'teeth'",
        id(8)
    );
    owner.execute(AssertSqlSafe(near)).await.unwrap();
    let mut vic = app.user(VIC).await;
    let asks = format!(
        "insert into public.embedding_jobs (dream_id, priority) values ('{}', 100); update public.embedding_jobs set status = 'pending' where dream_id = '{}'",
        id(4),
        id(8)
    );
    vic.execute(AssertSqlSafe(asks)).await.unwrap();
    let again = format!(
        "update public.dreams set raw_transcript = 'We walked along a river until it became a street of grass.' where id = '{}'",
        id(5)
    );
    uma.execute(AssertSqlSafe(again)).await.unwrap();
    uma.execute(AssertSqlSafe(format!("delete from public.dreams where id = '{}'", id(7)))).await.unwrap();
    owner.execute("insert into public.themes (code, label) values ('moon', 'The moon')").await.unwrap();
    app.world.work().await;
    assert_eq!(app.vendor.paid_texts()[paid..].len(), 2, "{:?}", &app.vendor.paid_texts()[paid..]);
    assert_snapshot!(app.picture(&[DREAMS, QUEUE, THEMES]).await, @"
    # dreams
    01 completed completed attempts=0 | 2 chunks tokens=2-2 v1024 bge-m3-v1 |
    02 completed completed attempts=1 at a time | 2 chunks tokens=2-16 v1024 bge-m3-v1 and minilm |
    03 completed completed attempts=1 at a time | 1 chunks tokens=16-16 v1024 bge-m3-v1 |
    04 completed completed attempts=1 at a time | 1 chunks tokens=15-15 v1024 bge-m3-v1 | water 0.95 in 0, flight 0.90 in 0, winter 0.85 in 0, home 0.80 in 0, sky 0.75 in 0
    05 completed completed attempts=1 at a time | 1 chunks tokens=13-13 v1024 bge-m3-v1 |
    06 completed skipped attempts=0 at a time the text has only 7 characters | |
    08 completed completed attempts=1 at a time | 6 chunks tokens=342-654 v1024 bge-m3-v1 | teeth 1.00 in 1
    09 completed failed attempts=1 at a time the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: … | |
    # embedding_jobs
    02 completed attempts=1 timed
    04 completed attempts=1 timed
    05 completed attempts=1 timed
    06 completed attempts=0 the text has only 7 characters timed
    08 completed attempts=1 timed
    09 failed attempts=1 the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: … timed
    # themes
    birds The birds | v1024
    flight The flight | v1024
    home The home | v1024
    moon The moon | v1024
    sky The sky | v1024
    teeth The teeth | v1024
    water The water | v1024
    winter The winter | v1024
    ");
}

#[tokio::test]
async fn the_live_shape_has_older_words_other_dimensions_and_scheduled_jobs() {
    let app = App::new("somni", "live").await;
    app.store.bucket("audio-messages");
    app.world.sql(PEOPLE).await;
    let mut owner = app.world.database.connect().await;
    owner.execute(theme("flight", FLYING, 0.9)).await.unwrap();
    assert_snapshot!(app.check().await, @r#"
    ok pipeline transcripts: recordings of "public"."dreams" transcribed by model scribe; on the row raw_transcript, transcription_metadata; status in transcription_status; effect usage (1 of 2 alternatives): insert public.transcription_usage
    ok pipeline themes: "public"."themes" to "public"."themes" itself by model bge-m3 (1024 dimensions); columns embedding
    ok pipeline dreams: "public"."dreams" to "public"."dream_embeddings" by model bge-m3 (1024 dimensions); columns chunk_index, chunk_text, token_count, embedding, processing_time_ms, metadata; status in embedding_status; asked by "public"."embedding_jobs"; effect themes: delete public.dream_themes, insert public.dream_themes
    ok pipeline fragments: "public"."knowledge_fragments" to "public"."knowledge_fragments" itself by model bge-m3 (1024 dimensions); columns embedding; effect themes: delete public.fragment_themes, insert public.fragment_themes
    ok pipeline messages: "public"."messages" to "public"."messages" itself by model small-3 (1536 dimensions); columns embedding
    ok pipeline knowledge: "public"."knowledge_base" to "public"."knowledge_base" itself by model bge-m3 (1024 dimensions); columns embedding_bge, embedding_version
    warning configuration: pipelines.themes.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.dreams.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.fragments.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.messages.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    warning configuration: pipelines.knowledge.source: changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`
    "#);
    app.world.work().await;

    owner.execute(dream(1, UMA, "done", FLYING, "en")).await.unwrap();
    owner.execute(dream(2, UMA, "error", "", "en")).await.unwrap();
    owner
        .execute(AssertSqlSafe(format!(
            "insert into public.embedding_jobs (dream_id) values ('{}'), ('{}')",
            id(1),
            id(2)
        )))
        .await
        .unwrap();
    owner
        .execute(
            "insert into public.messages (id, conversation_id, sender, content) values ('50000000-0000-4000-8000-000000000050', 'c0000000-0000-4000-8000-0000000000ca', 'user', 'What does it mean?'); \
             insert into public.knowledge_base (id, content) values ('60000000-0000-4000-8000-000000000060', 'Flying is freedom.'); \
             insert into public.knowledge_fragments (id, text) values ('f0000000-0000-4000-8000-000000000001', 'Dreams of flight are old.')",
        )
        .await
        .unwrap();
    app.world.work().await;
    let rows = (
        "rows",
        "select 'message ' || test.vector(embedding) from public.messages \
         union all select concat_ws(' ', 'knowledge', test.vector(embedding), test.vector(embedding_bge), embedding_version) from public.knowledge_base \
         union all select concat_ws(' ', 'fragment', test.vector(f.embedding), (select count(*) from public.fragment_themes) || ' links') from public.knowledge_fragments f",
    );
    assert_snapshot!(app.picture(&[DREAMS, QUEUE, THEMES, rows, STANDING]).await, @"
    # dreams
    01 done completed attempts=1 at a time | 1 chunks tokens=15-15 v1024 bge-m3-v1 | flight 0.90 in 0
    02 error pending attempts=0 | |
    # embedding_jobs
    01 completed attempts=1 timed
    02 pending attempts=0
    # themes
    flight The flight | v1024
    # rows
    message v1536
    knowledge no vector v1024 bge-m3-v1
    fragment v1024 1 links
    # jobs
    dreams 01 completed
    fragments 01 completed
    knowledge 60 completed
    messages 50 completed
    themes ht completed
    ");
}

#[tokio::test]
async fn a_dream_whose_worker_died_is_finished_however_often_others_tried() {
    let app = App::new("somni", "clean").await;
    app.store.bucket("audio-messages");
    let app = App { world: app.world.change("lease = \"10s\"", "lease = \"1s\""), ..app };
    app.world.sql(PEOPLE).await;
    app.world.work().await;
    let mut owner = app.world.database.connect().await;
    for number in 1..=2 {
        let text = format!("Dream {number} of a house that had more doors than walls.");
        owner.execute(dream(number, UMA, "completed", &text, "en")).await.unwrap();
    }
    // As a worker leaves them that was killed with both in hand, beside what the application's own clean-up stumbles over.
    owner
        .execute(
            "insert into public.embedding_jobs (dream_id, status, attempts) select id, 'processing', 3 from public.dreams; \
             update public.dreams set embedding_status = 'processing', embedding_attempts = 3; \
             select gristmill.enqueue('dreams', id) from public.dreams; \
             update gristmill.embedding_jobs set state = 'processing', lease_id = gen_random_uuid(), lease_until = now() - interval '1 minute'",
        )
        .await
        .unwrap();
    app.world.work().await;
    assert_snapshot!(app.picture(&[DREAMS, QUEUE, STANDING]).await, @"
    # dreams
    01 completed completed attempts=1 at a time | 1 chunks tokens=13-13 v1024 bge-m3-v1 |
    02 completed completed attempts=1 at a time | 1 chunks tokens=13-13 v1024 bge-m3-v1 |
    # embedding_jobs
    01 completed attempts=1 timed
    02 completed attempts=1 timed
    # jobs
    dreams 01 completed
    dreams 02 completed
    ");
}

#[tokio::test]
async fn what_was_said_into_the_phone_becomes_a_dream_and_is_billed_by_the_minute() {
    let mut pictures = Vec::new();
    for shape in ["clean", "live"] {
        let app = App::new("somni", shape).await;
        app.store.bucket("audio-messages");
        app.world.sql(PEOPLE).await;
        app.world.work().await;
        app.world.install_triggers().await;
        let mut uma = app.user(UMA).await;
        for number in 1..=2 {
            uma.execute(dream(number, UMA, "pending", "", "")).await.unwrap();
        }
        let told = json!({ "text": FLYING, "language_code": "eng", "language_probability": 0.9, "words": [] });
        app.speech.script([(200, None, told)]);
        // The recording of the second is still on its way.
        app.store.put("audio-messages", &format!("{UMA}/{}.m4a", id(1)), "audio/mp4", &wav(&[(90.5, true)]));
        app.world.work().await;
        app.world.work().await;

        let heard = (
            "heard",
            "select concat_ws(' ', test.id(d.id), raw_transcript, transcription_metadata - 'processed_at', '|', u.duration_seconds, u.provider, \
                 coalesce(to_jsonb(u)->>'language', to_jsonb(u)->>'language_code')) \
             from public.dreams d left join public.transcription_usage u on u.dream_id = d.id order by d.id",
        );
        pictures.push(app.picture(&[DREAMS, heard, LEDGER, STANDING]).await);
        assert_eq!(app.vendor.paid(FLYING), 1);
    }
    assert_eq!(pictures[0], pictures[1]);
    assert_snapshot!(pictures[0], @r#"
    # dreams
    01 completed completed attempts=1 at a time | 1 chunks tokens=15-15 v1024 bge-m3-v1 |
    02 pending pending attempts=0 | |
    # heard
    01 I was flying over a house beside the sea, and it was winter. {"duration": 90.5, "language": "eng", "model_id": "scribe_v1", "word_count": 13, "language_code": "eng", "character_count": 60, "language_probability": 0.9} | 91 elevenlabs eng
    02 {"language": ""} |
    # ledger
    dreams 01 r1 tenant=aa 15 tokens $0
    transcripts 01 r1 tenant=aa 1.508333 minutes $0.0055808321
    # jobs
    dreams 01 completed
    transcripts 01 completed
    transcripts 02 waiting file the file is not there yet
    "#);
}
