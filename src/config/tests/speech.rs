//! Models and pipelines that transcribe.

use std::time::Duration;

use super::*;

const SPEECH: &str = r#"
stores.audio = { kind = "local", root = "audio" }
providers.speech = { kind = "elevenlabs", key = "${KEY}" }
providers.openai = { kind = "openai", key = "${KEY}" }
[models.scribe]
provider = "speech"
name = "scribe_v1"
language = "eng"
options = { tag_audio_events = true, num_speakers = 2, temperature = 0.5, keyterms = ["mill", "grist"] }
[models.whisper]
provider = "openai"
name = "whisper-1"
[models.gpt]
provider = "openai"
name = "gpt-transcribe"
longest_part = "5m"
[[prices]]
model = "scribe"
usd = "0.0037"
from = 2026-01-01
[pipelines.transcripts]
kind = "transcribe"
model = "scribe"
[pipelines.transcripts.source]
table = "public.dreams"
key = ["id"]
tenant = "user_id"
needs = "status = 'pending'"
changes = "ignore"
[pipelines.transcripts.file]
store = "audio"
path = "{user_id}/{id}.*"
missing = "wait"
[pipelines.transcripts.write]
words = "{job.text}"
metadata = { seconds = "{job.seconds}", language = "{job.language}", segments = "{job.segments}" }
"#;

fn check_change(from: &str, to: &str, expected: &[&str]) {
    assert!(SPEECH.contains(from), "{from}");
    check(&SPEECH.replacen(from, to, 1), expected);
}

#[test]
fn a_model_without_dimensions_transcribes() {
    let config = read(SPEECH);
    let speech = |label: &str| config.models[label].speech.clone().unwrap();
    let scribe = speech("scribe");
    assert_eq!(scribe.language.as_deref(), Some("eng"));
    let options: Vec<String> =
        scribe.options.iter().map(|(name, values)| format!("{name}={}", values.join("+"))).collect();
    assert_eq!(options, ["keyterms=mill+grist", "num_speakers=2", "tag_audio_events=true", "temperature=0.5"]);
    let minutes = |label: &str| speech(label).longest_part.as_secs() / 60;
    assert_eq!([minutes("scribe"), minutes("whisper"), minutes("gpt")], [540, 1_440, 5]);
    assert_eq!(speech("gpt").longest_recording, Duration::from_hours(12));
    let shorter = read(&SPEECH.replace("longest_part = \"5m\"", "longest_recording = \"5m\""));
    assert_eq!(shorter.models["gpt"].speech.as_ref().unwrap().longest_recording, Duration::from_mins(5));
    assert_eq!(config.prices[0].meter, Meter::AudioMinutes);
    let pipeline = config.pipeline("transcripts").unwrap();
    assert_eq!(pipeline.kind, PipelineKind::Transcribe);
    assert_eq!(config.providers["speech"].timeout, None);
    let timed = read(&SPEECH.replace("kind = \"elevenlabs\"", "kind = \"elevenlabs\", timeout = \"2m\""));
    assert_eq!(timed.providers["speech"].timeout, Some(Duration::from_mins(2)));
}

#[test]
fn a_path_that_begins_with_the_tenants_folder_stays_there() {
    let within = |toml: &str| read(toml).pipelines.remove(0).file.unwrap().within.map(|within| within.to_string());
    assert_eq!(within(SPEECH).as_deref(), Some("{user_id}/"));
    assert_eq!(within(&SPEECH.replace("{user_id}/{id}", "{tenant}/{id}")).as_deref(), Some("{tenant}/"));
    let missing = misfits(&SPEECH.replace("\"{user_id}/{id}", "\"{folder}/{id}"));
    assert!(missing[0].starts_with("30: pipelines.transcripts.file.within: is missing"), "{missing:?}");
}

#[test]
fn what_speech_has_no_use_for_is_refused() {
    check_change(
        "language = \"eng\"",
        "dimensions = 4",
        &[
            "8: models.scribe.dimensions: is not a key that is known here; known are language, largest_part, longest_part, longest_recording, name, options, provider",
        ],
    );
    check_change(
        "tag_audio_events = true",
        "model_id = \"x\"",
        &["9: models.scribe.options.model_id: is not an option: what it says is sent, or must not be"],
    );
    check_change(
        "tag_audio_events = true",
        "response_format = \"text\"",
        &[
            "9: models.scribe.options.response_format: is a format that no transcript can be read from; write json, verbose_json or diarized_json, or leave it out",
        ],
    );
    check_change(
        "tag_audio_events = true",
        "use_multi_channel = true",
        &[
            "9: models.scribe.options.use_multi_channel: makes a transcript for each channel, of which none would be read; leave it out",
        ],
    );
    check_change(
        "longest_part = \"5m\"",
        "longest_recording = \"10ms\"",
        &["16: models.gpt.longest_recording: is shorter than a second"],
    );
    check_change("\"5m\"", "\"10ms\"", &["16: models.gpt.longest_part: is shorter than a second"]);
    check_change(
        "longest_part = \"5m\"",
        "largest_part = \"1 kB\"",
        &["16: models.gpt.largest_part: is less than 256 KiB, in which nothing can be said"],
    );
    check_change(
        "model = \"scribe\"\nusd",
        "model = \"scribe\"\nmeter = \"tokens\"\nusd",
        &["19: prices[0].meter: is tokens, but the model transcribes, which is counted in audio_minutes"],
    );
    check_change(
        "kind = \"elevenlabs\", key = \"${KEY}\"",
        "kind = \"elevenlabs\"",
        &["3: providers.speech.key: is missing; write for example key = \"${ELEVENLABS_API_KEY}\""],
    );
    check_change(
        "kind = \"transcribe\"",
        "kind = \"transcribe\"\nexisting = \"adopt\"\ncache = true\nchunks = { whole = true }\nskip = { shorter_than = 3 }",
        &[
            "23: pipelines.transcripts.existing: asks for vectors, of which a transcript has none; write \"backfill\" or \"ignore\"",
            "24: pipelines.transcripts.cache: is of vectors, of which a transcript has none",
            "25: pipelines.transcripts.chunks: means nothing with kind = \"transcribe\": the transcript goes where `write` says",
            "26: pipelines.transcripts.skip.shorter_than: means nothing with kind = \"transcribe\": how long the text is, is known when it is paid",
        ],
    );
    check_change(
        "changes = \"ignore\"",
        "text = \"{title}\"",
        &["29: pipelines.transcripts.source.text: means nothing with kind = \"transcribe\": what is read is the file"],
    );
}

#[test]
fn a_pipelines_models_do_what_it_does() {
    let embedding = r#"
[pipelines.notes]
model = "whisper"
source = { table = "notes", key = ["id"], text = "{body}" }
chunks = { whole = true }
target = { columns = { embedding = "{chunk.vector}" } }
"#;
    check(
        &format!("{SPEECH}{embedding}"),
        &[
            "39: pipelines.notes.model: whisper has no dimensions, so it transcribes; write dimensions under [models.whisper], or kind = \"transcribe\"",
        ],
    );
    let tiny = "[models.tiny]\nprovider = \"openai\"\nname = \"x\"\ndimensions = 8\n[models.scribe]";
    let wrong =
        SPEECH.replacen("[models.scribe]", tiny, 1).replace("model = \"scribe\"\n[pipe", "model = \"tiny\"\n[pipe");
    check(
        &wrong,
        &[
            "27: pipelines.transcripts.model: tiny makes vectors; name a model that transcribes, which has no dimensions",
        ],
    );
}
