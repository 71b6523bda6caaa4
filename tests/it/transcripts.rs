//! Recordings become text on their rows: paid once, measured, and content for the next pipeline.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;
use uuid::Uuid;

use crate::applications::application;
use crate::cli::gristmill;
use crate::engine::Process;
use crate::fake_speech::{FakeSpeech, Seen};
use crate::reconcile::reconciled;
use crate::world::{USER, World};

const TABLES: &str = "create schema app; \
    create table app.dreams (id uuid primary key default gen_random_uuid(), user_id uuid not null, claimed_seconds int, \
        transcription_status text not null default 'pending', error text, raw_transcript text, transcription_metadata jsonb, segments jsonb); \
    create table app.usage (dream uuid, seconds numeric, minutes numeric, cents numeric, language text, characters int); \
    create table app.dream_chunks (dream_id uuid not null, nth int not null, body text not null, embedding vector(8) not null);";

const TRANSCRIPTS: &str = r#"
[providers.speech]
kind = "elevenlabs"
url = "URL"
key = "xi-canary-secret"

[models.scribe]
provider = "speech"
name = "scribe_v1"
language = "eng"
options = { tag_audio_events = true, diarize = false }

[[prices]]
model = "scribe"
usd = "0.0037"
from = 2026-01-01

[pipelines.transcripts]
kind = "transcribe"
model = "scribe"
existing = "ignore"
[pipelines.transcripts.source]
table = "app.dreams"
key = ["id"]
tenant = "user_id"
needs = "transcription_status = 'pending'"
changes = "ignore"
[pipelines.transcripts.file]
store = "samples"
path = "{user_id}/{id}.*"
missing = "wait"
[pipelines.transcripts.status]
column = "transcription_status"
words = { skipped = "failed" }
columns = { error = "{job.error}" }
[pipelines.transcripts.write]
raw_transcript = "{job.text}"
segments = "{job.segments}"
transcription_metadata = { language = "{job.language}", probability = "{job.language_probability}", words = "{job.words}", characters = "{job.characters}", duration = "{job.seconds}" }
[[pipelines.transcripts.effects]]
name = "usage"
sql = "insert into app.usage values ({id}, {job.seconds}, {job.seconds} / 60, {job.cost} * 100, {job.language}, {job.characters})"
"#;

/// A world of that vendor, with what `more` adds to the configuration.
async fn world_of(vendor: &FakeSpeech, more: &str) -> World {
    application(TABLES, &format!("{}{more}", TRANSCRIPTS.replace("URL", &vendor.url()))).await
}

const RATE: u32 = 16_000;

/// A WAV file of tones and silences: seconds, and whether there is a tone.
pub fn wav(stretches: &[(f64, bool)]) -> Vec<u8> {
    let mut data = Vec::new();
    for &(seconds, loud) in stretches {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
        let samples = (seconds * f64::from(RATE)).round() as u32;
        for nth in 0..samples {
            let value = if loud { (f64::from(nth) * 0.2).sin() * 9_000.0 } else { 0.0 };
            #[expect(clippy::cast_possible_truncation, reason = "a sample")]
            data.extend_from_slice(&(value as i16).to_le_bytes());
        }
    }
    let size = u32::try_from(data.len()).unwrap();
    let mut file = b"RIFF".to_vec();
    file.extend_from_slice(&(size + 36).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend_from_slice(&RATE.to_le_bytes());
    file.extend_from_slice(&(2 * RATE).to_le_bytes());
    file.extend_from_slice(b"\x02\0\x10\0data");
    file.extend_from_slice(&size.to_le_bytes());
    file.extend_from_slice(&data);
    file
}

/// Ten seconds with two pauses.
fn long() -> Vec<u8> {
    wav(&[(3.5, true), (0.5, false), (3.0, true), (0.4, false), (2.6, true)])
}

impl World {
    /// A dream whose row claims any length, with a recording where there is one.
    async fn dream(&self, recording: Option<(&str, &[u8])>) -> Uuid {
        let id = Uuid::new_v4();
        if let Some((extension, bytes)) = recording {
            self.put(&format!("{USER}/{id}.{extension}"), bytes);
        }
        self.sql(&format!("insert into app.dreams (id, user_id, claimed_seconds) values ('{id}', '{USER}', 999)"))
            .await;
        id
    }

    /// Every dream: its status and text, its job, and what was kept for it.
    async fn dreams(&self) -> String {
        self.list(
            "select concat_ws(' ', d.transcription_status, d.raw_transcript, '|', j.state, 'attempt=' || j.attempt, j.error_kind, j.reason, \
                 '| usage', (select string_agg(concat_ws(' ', u.quantity, u.unit, u.cost), ', ') from gristmill.usage_events u where u.job_id = j.id), \
                 '| kept', (select count(*) from gristmill.transcript_parts p where p.job_id = j.id)) \
             from app.dreams d left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) and j.pipeline = 'transcripts' \
             order by d.raw_transcript, j.reason",
        )
        .await
        .join("\n")
    }

    async fn calls(&self) -> Vec<String> {
        self.list("select concat_ws(' ', outcome, error_kind, seconds, cost) from gristmill.provider_calls order by started_at").await
    }
}

#[tokio::test]
async fn a_recording_becomes_text_on_its_row() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let recording = wav(&[(3.3, true), (0.25, false)]);
    world.dream(Some(("wav", &recording))).await;

    world.work().await;

    // Neither the row's word on its length counts, nor the provider's, but what can be heard.
    assert_snapshot!(world.dreams().await, @"completed Heard 3.55 seconds. | completed attempt=1 | usage 0.059167 minute 0.0002189179 | kept 0");
    let meta: String = world.value("select transcription_metadata::text from app.dreams").await;
    assert_snapshot!(meta, @r#"{"words": 3, "duration": 3.55, "language": "eng", "characters": 19, "probability": 0.98}"#);
    let segments: String = world.value("select segments::text from app.dreams").await;
    assert_snapshot!(segments, @r#"[{"end": 0.4, "text": "Heard", "start": 0.1}, {"end": 0.9, "text": "(bell)", "start": 0.5}]"#);
    let usage =
        world.list("select concat_ws(' ', seconds, round(cents, 6), language, characters) from app.usage").await;
    assert_eq!(usage, ["3.55 0.021892 eng 19"]);
    assert_eq!(world.calls().await, ["paid 3.550 0.0002189179"]);

    let [seen] = <[_; 1]>::try_from(vendor.seen()).expect("one request");
    assert_eq!((seen.path.as_str(), seen.key.as_str()), ("/v1/speech-to-text", "xi-canary-secret"));
    assert_eq!(seen.fields, ["model_id=scribe_v1", "language_code=eng", "diarize=false", "tag_audio_events=true"]);
    assert_eq!((seen.file_name.as_str(), seen.media_type.as_str()), ("audio.wav", "audio/wav"));
    assert!(seen.bytes == recording, "what fits into one request goes as it is");
}

#[tokio::test]
async fn openai_and_what_speaks_its_language_transcribe_too() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let url = vendor.url();
    let world = world
        .change(&format!("kind = \"elevenlabs\"\nurl = \"{url}\""), &format!("kind = \"openai\"\nurl = \"{url}/v1\""))
        .change("scribe_v1", "whisper-1")
        .change("{ tag_audio_events = true, diarize = false }", "{ temperature = 0.2 }");
    world.dream(Some(("mp3", &wav(&[(2.0, true)])))).await;

    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 2.00 seconds. | completed attempt=1 | usage 0.033333 minute 0.0001233321 | kept 0");
    let segments: String = world.value("select segments::text from app.dreams").await;
    assert_snapshot!(segments, @r#"[{"end": 1.5, "text": "Heard 2.00 seconds.", "start": 0.0}]"#);
    let [seen] = <[_; 1]>::try_from(vendor.seen()).expect("one request");
    assert_eq!((seen.path.as_str(), seen.key.as_str()), ("/v1/audio/transcriptions", "Bearer xi-canary-secret"));
    assert_eq!(seen.fields, ["model=whisper-1", "language=eng", "response_format=verbose_json", "temperature=0.2"]);
    // The name that the file has in the store says nothing: its bytes do.
    assert_eq!(seen.file_name, "audio.wav");
}

#[tokio::test]
async fn a_killed_worker_pays_for_no_part_of_a_long_recording_twice() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "")
        .await
        .change("language = \"eng\"", "longest_part = \"4s\"")
        .change("lease = \"10s\"", "lease = \"2s\"");
    world.dream(Some(("wav", &long()))).await;
    vendor.allow(1);
    let mut first = Process::start(&world, &[]);
    vendor.arrived(2).await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.transcript_parts").await, 1);

    first.kill();
    vendor.allow(usize::MAX);
    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 3.85 seconds. Heard 3.40 seconds. Heard 2.75 seconds. | completed attempt=1 | usage 0.166667 minute 0.0006166679 | kept 0");
    // The parts of the bill are the whole, though each is rounded; only the request that was cut off is on nobody's.
    let told = gristmill(&world, &["usage", "reconcile", "--json"]).await.ok().json();
    let account = &told["tenants"][0];
    assert_eq!((&account["charged"], &account["unit"]), (&json!("10"), &json!("second")));
    assert_eq!((&account["charged"], &account["charged_usd"]), (&account["paid"], &account["paid_usd"]));
    // Cut in the pauses; times count from the beginning of the whole.
    let starts =
        world.list("select segment->>'start' from app.dreams, jsonb_array_elements(segments) as segment").await;
    assert_eq!(starts, ["0.1", "0.5", "3.95", "4.35", "7.35", "7.75"]);
    let sent: Vec<f64> = vendor.seen().iter().map(Seen::seconds).collect();
    assert_eq!(sent, [3.85, 3.4, 3.4, 2.75], "only what was in flight was sent again");
    assert_eq!(world.calls().await.iter().filter(|call| call.starts_with("paid")).count(), 3);
}

#[tokio::test]
async fn a_recording_that_becomes_another_tenants_is_bought_and_charged_for_that_one() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "")
        .await
        .change("language = \"eng\"", "longest_part = \"4s\"")
        .change("lease = \"10s\"", "lease = \"2s\"");
    let (id, other) = (world.dream(Some(("wav", &long()))).await, Uuid::new_v4());
    world.put(&format!("{other}/{id}.wav"), &long());
    vendor.allow(1);
    let mut first = Process::start(&world, &[]);
    vendor.arrived(2).await;
    first.kill();
    world.sql(&format!("update app.dreams set user_id = '{other}'")).await;
    vendor.allow(usize::MAX);
    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 3.85 seconds. Heard 3.40 seconds. Heard 2.75 seconds. | completed attempt=1 | usage 0.166667 minute 0.0006166679 | kept 0");
    assert_eq!(vendor.seen().iter().map(Seen::seconds).collect::<Vec<_>>(), [3.85, 3.4, 3.85, 3.4, 2.75]);
    // Of the killed worker's last request nobody knows.
    world.sql("update gristmill.provider_calls set outcome = 'unknown' where outcome = 'intent'").await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    3.85 paid by an attempt whose answer could not be used or written [1]
    ");
    let told = gristmill(&world, &["usage", "reconcile", "--json"]).await.ok().json();
    let charged: Vec<_> =
        told["tenants"].as_array().into_iter().flatten().filter(|account| account["charged"] != "0").collect();
    assert_eq!(charged.len(), 1);
    assert_eq!((&charged[0]["charged"], &charged[0]["charged_usd"]), (&charged[0]["paid"], &charged[0]["paid_usd"]));
}

#[tokio::test]
async fn a_job_that_was_opened_again_meanwhile_uses_what_was_paid() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let id = world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;
    vendor.allow(0);
    let worker = world.start().await;
    vendor.arrived(1).await;
    world.sql(&format!("select gristmill.enqueue('transcripts', '{id}')")).await;
    vendor.allow(usize::MAX);
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 2.00 seconds. | completed attempt=1 | usage 0.033333 minute 0.0001233321 | kept 0");
    assert_eq!(vendor.paid(), [2.0]);
}

#[tokio::test]
async fn a_fresh_retry_pays_for_every_part_again() {
    let vendor = FakeSpeech::start();
    let refused = (400, None, json!({"detail": {"status": "invalid_content"}}));
    vendor.script([(200, None, json!({"text": "Old words."})), refused]);
    let world = world_of(&vendor, "").await.change("language = \"eng\"", "longest_part = \"4s\"");
    world.dream(Some(("wav", &long()))).await;
    world.work().await;
    assert_snapshot!(world.dreams().await, @"failed | failed attempt=1 refused the provider refused the recording: status 400, invalid_content | usage | kept 1");

    world.sql("select gristmill.retry(id, true) from gristmill.embedding_jobs").await;
    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 3.85 seconds. Heard 3.40 seconds. Heard 2.75 seconds. | completed attempt=1 | usage 0.166667 minute 0.0006166679 | kept 0");
    assert_eq!(vendor.seen().iter().map(Seen::seconds).collect::<Vec<_>>(), [3.85, 3.4, 3.85, 3.4, 2.75]);
}

#[tokio::test]
async fn a_recording_beyond_the_ceiling_waits_unpaid() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "\n[pipelines.transcripts.ceiling]\nusd_per_day = 0.0001\n").await;
    for seconds in [0.5, 2.0] {
        world.dream(Some(("wav", &wav(&[(seconds, true)])))).await;
        world.work().await;
    }

    assert_eq!(vendor.paid(), [0.5]);
    let jobs = "select concat_ws(' ', state, error_kind, reason) from gristmill.embedding_jobs order by 1";
    assert_snapshot!(world.list(jobs).await.join("\n"), @r#"
    completed
    waiting ceiling a ceiling is reached: usd_per_day of pipeline transcripts: 0.0000308321 USD are spent, and 0.0001233321 more would be too much
    "#);
    let counted = "select sum(usd) = (select sum(cost) from gristmill.provider_calls) from gristmill.spending";
    assert!(world.value::<bool>(counted).await);
}

#[tokio::test]
async fn a_recording_that_its_tenant_may_not_pay_for_waits_unpaid() {
    // Its tokens are used up, which is no matter of sound.
    const LIMIT: &str = "\n[limits.daily]\nover = \"snooze\"\nsql = \"select -5 as tokens, 0.0001 as usd\"\n";
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, LIMIT).await;
    let world = world.change(
        "existing = \"ignore\"\n[pipelines.transcripts.s",
        "existing = \"ignore\"\nlimit = \"daily\"\n[pipelines.transcripts.s",
    );
    for seconds in [0.5, 2.0] {
        world.dream(Some(("wav", &wav(&[(seconds, true)])))).await;
    }

    world.work().await;

    assert_snapshot!(world.dreams().await, @"
    completed Heard 0.50 seconds. | completed attempt=1 | usage 0.008333 minute 0.0000308321 | kept 0
    pending | waiting attempt=0 limit limit daily leaves too little: 0.0001 usd left, 0.0001233321 needed | usage | kept 0
    ");
    assert_eq!(vendor.paid(), [0.5]);
}

#[tokio::test]
async fn what_cannot_be_heard_fails_for_good_and_costs_nothing() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let silent = wav(&[]);
    let cut_off = &long()[..30];
    let zeros = wav(&[(1.0, false)]);
    for bytes in
        [b"This is no sound at all.".as_slice(), b"", &silent, &zeros, cut_off, b"\xff\xfb\x90\x00 and nothing else"]
    {
        world.dream(Some(("wav", bytes))).await;
    }

    world.work().await;

    let reasons =
        world.list("select distinct concat_ws(' ', state, attempt, error_kind) from gristmill.embedding_jobs").await;
    assert_eq!(reasons, ["failed 1 unreadable"], "{}", world.dreams().await);
    let words =
        world.list("select distinct concat_ws(': ', transcription_status, error) from app.dreams order by 1").await;
    assert_snapshot!(words.join("\n"), @"
    failed: files of type Plain Text (text/plain) are not supported
    failed: the file cannot be read as audio: it is cut off or damaged
    failed: the file cannot be read as audio: it is empty
    failed: the file cannot be read as audio: it is silent throughout
    failed: the file cannot be read as audio: there is no sound in it
    ");
    assert_eq!(vendor.seen().len(), 0);
}

#[tokio::test]
async fn a_recording_that_sounds_for_too_long_is_not_paid_for() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await.change("language = \"eng\"", "longest_recording = \"3s\"");
    for seconds in [3.0, 3.5] {
        world.dream(Some(("wav", &wav(&[(seconds, true)])))).await;
    }

    world.work().await;

    assert_snapshot!(world.dreams().await, @"
    completed Heard 3.00 seconds. | completed attempt=1 | usage 0.05 minute 0.000185 | kept 0
    failed | failed attempt=1 refused the recording sounds for 3.5 s, longer than longest_recording of its model allows (3.0 s) | usage | kept 0
    ");
    assert_eq!(vendor.paid(), [3.0]);
}

#[tokio::test]
async fn an_answer_that_is_no_transcript_is_not_paid_for_again_and_again() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;
    // A transcript all the same, and then none.
    vendor.script([(200, None, json!({"text": "Nothing but words.", "words": null, "language_code": null}))]);
    world.work().await;
    vendor.always((200, None, json!("Nothing but a text.")));
    world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;
    for _ in 0..9 {
        world.work().await;
        world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    }

    assert_snapshot!(world.dreams().await, @"
    completed Nothing but words. | completed attempt=1 | usage 0.016667 minute 0.0000616679 | kept 0
    failed | failed attempt=5 garbled the provider's answer is not usable: it sent no transcript in JSON (line 1, column 21) (attempt 5 of 5) | usage | kept 0
    ");
    // Five attempts, and the one of the first recording.
    assert_eq!(vendor.seen().len(), 6);
    let calls = world.calls().await;
    assert!(calls[1..].iter().all(|call| call.starts_with("paid garbled 2.000")), "{calls:?}");
}

#[tokio::test]
async fn openai_may_leave_segments_out() {
    let vendor = FakeSpeech::start();
    vendor.script([(200, None, json!({"text": "Words.", "segments": null}))]);
    let world = world_of(&vendor, "").await;
    let url = vendor.url();
    let world = world
        .change(&format!("kind = \"elevenlabs\"\nurl = \"{url}\""), &format!("kind = \"openai\"\nurl = \"{url}/v1\""))
        .change("{ tag_audio_events = true, diarize = false }", "{ response_format = \"json\" }");
    world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;

    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Words. | completed attempt=1 | usage 0.033333 minute 0.0001233321 | kept 0");
}

#[tokio::test]
async fn check_asks_who_transcribes_whether_it_takes_the_key() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let said = async || {
        let findings = gristmill(&world, &["check", "--json"]).await.json();
        let findings = findings.as_array().expect("findings").iter().filter(|one| one["about"] == "model scribe");
        findings
            .map(|one| format!("{}: {}", one["level"].as_str().unwrap(), one["message"].as_str().unwrap()))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_snapshot!(said().await, @"ok: scribe_v1: provider speech takes the credential (asked, unpaid)");
    // It may transcribe, and not ask what else there is.
    vendor.lists(
        401,
        json!({"detail": {"status": "missing_permissions", "message": "The API key is missing models_read"}}),
    );
    assert_snapshot!(said().await, @"ok: scribe_v1: provider speech takes the credential (asked, unpaid)");
    vendor.lists(401, json!({"detail": {"status": "invalid_api_key", "message": "Invalid API key"}}));
    assert_snapshot!(said().await, @"error: scribe_v1: provider speech: the provider refused the credential: status 401, invalid_api_key: Invalid API key");
    assert_eq!(vendor.seen().len(), 0);
}

#[tokio::test]
async fn a_recording_may_come_after_its_row() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let id = world.dream(None).await;
    world.work().await;
    assert_snapshot!(world.dreams().await, @"pending | waiting attempt=0 file the file is not there yet | usage | kept 0");

    world.put(&format!("{USER}/{id}.wav"), &wav(&[(1.0, true)]));
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;

    assert_snapshot!(world.dreams().await, @"completed Heard 1.00 seconds. | completed attempt=1 | usage 0.016667 minute 0.0000616679 | kept 0");
}

#[tokio::test]
async fn a_tenant_s_own_key_and_what_it_is_allowed_hold_for_its_recordings() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    let own =
        format!("key = \"xi-canary-secret\"\nkeys = {{ \"{USER}\" = \"xi-own-canary\" }}\nrequests_per_minute = 2");
    let world = world.change("key = \"xi-canary-secret\"", &own);
    world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;
    world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;

    world.work().await;

    // One goes at once; the moment of the other is half a minute away.
    let keys: Vec<String> = vendor.seen().into_iter().map(|seen| seen.key).collect();
    assert_eq!(keys, ["xi-own-canary"]);
    let states = world.list("select concat_ws(' ', state, error_kind) from gristmill.embedding_jobs order by 1").await;
    assert_eq!(states, ["completed", "waiting rate_limited"]);
}

#[tokio::test]
async fn a_rate_limit_is_waited_out_or_slept_off() {
    let vendor = FakeSpeech::start();
    let limited =
        |after| (429, Some(("retry-after", after)), json!({"detail": {"status": "system_busy", "message": "busy"}}));
    vendor.script([limited("0.1"), limited("40")]);
    let world = world_of(&vendor, "").await;
    world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;

    world.work().await;

    assert_snapshot!(world.dreams().await, @"pending | waiting attempt=0 rate_limited the provider limits the rate | usage | kept 0");
    let due: bool = world
        .value("select run_at between now() + interval '30 seconds' and now() + interval '41 seconds' from gristmill.embedding_jobs")
        .await;
    assert!(due, "the vendor's time is not kept");
    assert_eq!(world.calls().await, ["refused rate_limited 1.000", "refused rate_limited 1.000"]);

    // Another worker keeps the pause that the first was told.
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;
    assert_eq!((vendor.seen().len(), world.calls().await.len()), (2, 2));

    world
        .sql("update gristmill.budgets set shut_until = now(); update gristmill.embedding_jobs set run_at = now()")
        .await;
    world.work().await;
    assert_eq!(vendor.paid(), [1.0]);
}

#[tokio::test]
async fn a_refused_credential_pauses_the_lane() {
    for (status, word) in [(401, "invalid_api_key"), (401, "quota_exceeded")] {
        let vendor = FakeSpeech::start();
        vendor.always((
            status,
            None,
            json!({"detail": {"status": word, "message": "xi-canary-secret is not welcome"}}),
        ));
        let world = world_of(&vendor, "").await.change("key = \"xi", "concurrency = 1\nkey = \"xi");
        for _ in 0..5 {
            world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;
        }

        let worker = world.start().await;
        worker.idle().await;
        let lanes = worker.running.lane_status();
        worker.stop().await;

        assert_eq!(world.states().await, "5 waiting credential");
        let burnt: i64 = world.value("select count(*) from gristmill.embedding_jobs where attempt > 0").await;
        assert_eq!(burnt, 0);
        let (why, seconds) = lanes.iter().find_map(|lane| lane.paused.clone()).expect("the lane is paused");
        assert!(why.contains(word) && !why.contains("canary") && seconds > 240, "{why} {seconds}");
        assert_eq!(vendor.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_refused_recording_fails_alone_and_an_outage_fails_nothing() {
    let vendor = FakeSpeech::start();
    vendor.script([
        (400, None, json!({"detail": {"status": "invalid_content", "message": "The audio \"My dream\" is corrupted"}})),
        (503, None, json!("")),
        (413, None, json!("")),
        (422, None, json!({"detail": [{"loc": ["body", "model_id"], "msg": "unknown", "input": "scribe_v1"}]})),
    ]);
    let world = world_of(&vendor, "").await.change("key = \"xi", "concurrency = 1\nkey = \"xi");
    for _ in 0..4 {
        world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;
    }

    world.work().await;

    let ends =
        world.list("select concat_ws(' ', state, error_kind, reason) from gristmill.embedding_jobs order by 1").await;
    assert_snapshot!(ends.join("\n"), @"
    failed refused the provider refused the recording: it is larger than the provider takes; lower largest_part or longest_part of the model
    failed refused the provider refused the recording: status 400, invalid_content: The audio … is corrupted
    waiting misconfigured the provider cannot be used as configured: status 422, model_id: unknown
    waiting unavailable the provider is away: status 503
    ");
}

#[tokio::test]
async fn a_transcript_is_content_for_the_next_pipeline() {
    const DREAMS: &str = r#"
[pipelines.dreams]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.dreams.source]
table = "app.dreams"
key = ["id"]
tenant = "user_id"
when = "transcription_status = 'completed'"
text = "{raw_transcript}"
[pipelines.dreams.chunks]
tokens = 20
overlap = 0
[pipelines.dreams.target]
table = "app.dream_chunks"
parent = { dream_id = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
"#;
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, DREAMS).await;
    world.install_triggers().await;
    let worker = world.start().await;
    worker.idle().await;
    world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;
    let embedded = "select exists (select from app.dream_chunks)";
    tokio::time::timeout(Duration::from_secs(30), async {
        while !world.value::<bool>(embedded).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the transcript is embedded");
    worker.idle().await;
    worker.stop().await;

    assert_eq!(world.list("select body from app.dream_chunks").await, ["Heard 2.00 seconds."]);
    // Its own write has not opened the transcription again, neither now nor at the next sweep.
    assert_eq!(world.sweep(None).await, 0);
    let jobs = world
        .list("select concat_ws(' ', pipeline, state, 'r' || revision) from gristmill.embedding_jobs order by 1")
        .await;
    assert_eq!(jobs, ["dreams completed r1", "transcripts completed r1"]);
    assert_eq!(vendor.paid(), [2.0]);
}

#[tokio::test]
async fn a_model_that_is_changed_asks_for_nothing_to_be_transcribed_again() {
    let vendor = FakeSpeech::start();
    let world = world_of(&vendor, "").await;
    world.dream(Some(("wav", &wav(&[(1.0, true)])))).await;
    world.work().await;

    let world = world.change("scribe_v1", "scribe_v2");
    world.dream(Some(("wav", &wav(&[(2.0, true)])))).await;
    world.work().await;

    assert_eq!(vendor.paid(), [1.0, 2.0]);
    let plans = world.plans().await;
    let mut connection = world.pool.acquire().await.unwrap();
    let found = gristmill::db::app::verify(&mut connection, &plans[0], None, 10).await.unwrap().0;
    let kinds: Vec<String> = found.iter().map(|finding| format!("{:?}", finding.kind)).collect();
    assert_eq!(kinds, ["Stale"], "the older transcript is named, not missing");
    let unpaid = gristmill::db::pipelines::unpaid(&world.pool, "transcripts", &plans[0].generation).await.unwrap();
    assert_eq!((unpaid.held, unpaid.old), (0, 1), "what a person may accept");
    let bill = gristmill(&world, &["accept", "transcripts", "--dry-run"]).await.ok().out;
    assert!(bill.contains("not known before the sound is measured") && !bill.contains("tokens"), "{bill}");
}
