//! The child's side of recordings: their length, the quiet places in them, and parts of them.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::units::TimeBase;

use super::recording::{Container, PartLimits, Recording, Span};
use super::wave::{self, Mono};
use super::wire::{Answer, Listen, ReadError};

/// Loudness is looked at in steps of this many milliseconds.
const STEP_MS: u64 = 10;
/// A pause is judged over so many steps.
const PAUSE_STEPS: usize = 30;
/// The quietest place is looked for in the last quarter of a part, and never more than half a minute before its limit.
const SEARCH_MS: u64 = 30_000;
/// Damaged places that are stepped over before a file is given up.
const MOST_DAMAGED: u32 = 1_000;

/// Listens to a recording. Runs in the closed sandbox.
pub(super) fn listen(bytes: Vec<u8>, listen: Listen) -> Answer {
    let heard = catch_unwind(AssertUnwindSafe(|| match listen {
        Listen::Measure(limits) => measure(bytes, limits).map(Answer::Recording),
        Listen::Cut { span, limits } => cut(bytes, span, limits).map(|part| Answer::Part(STANDARD.encode(part))),
    }));
    match heard {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::Failed(error),
        Err(_) => Answer::Panicked,
    }
}

fn broken(detail: &str) -> ReadError {
    ReadError::broken("audio", detail)
}

fn measure(bytes: Vec<u8>, limits: PartLimits) -> Result<Recording, ReadError> {
    let size = bytes.len() as u64;
    let mut sound = Sound::open(bytes)?;
    let container = sound.container;
    if sound.decoder.is_none() {
        let ms = sound.length_by_container()?;
        if ms > limits.longest_ms || size > limits.largest {
            let detail = format!("{} cannot be cut, and it is longer than one request may be", sound.codec);
            return Err(broken(&detail));
        }
        return Ok(Recording { container, ms, parts: Vec::new() });
    }
    let mut loudness = Loudness::default();
    let mut frames: u64 = 0;
    let rate = sound.decode(|samples, rate| {
        frames += samples.len() as u64;
        loudness.add(samples, rate);
        true
    })?;
    let ms = wave::milliseconds(frames, rate);
    if ms == 0 {
        return Err(broken("there is no sound in it"));
    }
    let longest = limits.longest_ms.min(wave::longest_ms(rate, limits.largest_part()));
    let fits = ms <= limits.longest_ms && size <= limits.largest;
    let parts = if fits { Vec::new() } else { loudness.parts(ms, longest) };
    Ok(Recording { container, ms, parts })
}

fn cut(bytes: Vec<u8>, span: Span, limits: PartLimits) -> Result<Vec<u8>, ReadError> {
    let mut sound = Sound::open(bytes)?;
    let mut mono: Option<Mono> = None;
    let mut at: u64 = 0;
    sound.decode(|samples, rate| {
        let (from, to) = (wave::frames(span.from_ms, rate), wave::frames(span.to_ms, rate));
        let here = at..at + samples.len() as u64;
        at = here.end;
        let within =
            |frame: u64| usize::try_from(frame.clamp(here.start, here.end) - here.start).unwrap_or(samples.len());
        let part = mono.get_or_insert_with(|| Mono::new(rate));
        part.add(&samples[within(from)..within(to)]);
        here.end < to
    })?;
    let part = mono.map(Mono::into_wav).unwrap_or_default();
    if part.is_empty() || part.len() as u64 > limits.largest {
        return Err(broken("a part of it cannot be cut"));
    }
    Ok(part)
}

/// An opened recording: its first track of sound.
struct Sound {
    reader: Box<dyn FormatReader>,
    container: Container,
    codec: String,
    track: u32,
    time_base: Option<TimeBase>,
    /// None where this build has no decoder: then its length is what the container's packets say.
    decoder: Option<Box<dyn AudioDecoder>>,
}

impl Sound {
    fn open(bytes: Vec<u8>) -> Result<Self, ReadError> {
        if bytes.is_empty() {
            return Err(broken("it is empty"));
        }
        let source = MediaSourceStream::new(Box::new(Cursor::new(bytes)), MediaSourceStreamOptions::default());
        let probe = symphonia::default::get_probe();
        let reader = probe.probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default()).map_err(
            |error| match error {
                // What a prober says when nothing it knows is there.
                Error::Unsupported(_) | Error::IoError(_) => {
                    ReadError::Unsupported("unknown: no recording that can be heard".to_owned())
                }
                error => said(&error),
            },
        )?;
        let container = container(reader.format_info().short_name)?;
        let track = reader.default_track(TrackType::Audio).ok_or_else(|| broken("there is no sound in it"))?;
        let params = track.codec_params.as_ref().and_then(|params| params.audio());
        let params = params.ok_or_else(|| broken("there is no sound in it"))?;
        let codecs = symphonia::default::get_codecs();
        // A provider may hear what this build cannot, like Opus, or a profile of AAC.
        let decoder = codecs.make_audio_decoder(params, &AudioDecoderOptions::default()).ok();
        let known = codecs.get_audio_decoder(params.codec).map(|known| known.codec.info.short_name);
        let codec = match (params.codec, known) {
            (CODEC_ID_OPUS, _) => "Opus".to_owned(),
            (_, Some(name)) => format!("this kind of {name}"),
            (other, None) => format!("codec {other}"),
        };
        let (track, time_base) = (track.id, track.time_base);
        Ok(Self { reader, container, codec, track, time_base, decoder })
    }

    /// The next packet of the track; damaged places are stepped over, and a file that breaks off ends there.
    fn next(&mut self, damaged: &mut u32) -> Result<Option<symphonia::core::packet::Packet>, ReadError> {
        loop {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => return Ok(Some(packet)),
                Ok(Some(_)) => {}
                Ok(None) | Err(Error::IoError(_) | Error::ResetRequired) => return Ok(None),
                Err(error @ Error::DecodeError(_)) => step_over(damaged, &error)?,
                Err(error) => return Err(said(&error)),
            }
        }
    }

    /// Decodes everything, mixed to one channel; `take` says whether to go on. Returns the sampling rate.
    fn decode(&mut self, mut take: impl FnMut(&[f32], u32) -> bool) -> Result<u32, ReadError> {
        let mut decoder = self.decoder.take().ok_or_else(|| broken("it cannot be decoded"))?;
        let (mut damaged, mut rate) = (0, None);
        let (mut interleaved, mut mono) = (Vec::new(), Vec::new());
        while let Some(packet) = self.next(&mut damaged)? {
            let buffer = match decoder.decode(&packet) {
                Ok(buffer) => buffer,
                Err(error @ (Error::DecodeError(_) | Error::IoError(_))) => {
                    step_over(&mut damaged, &error)?;
                    continue;
                }
                Err(error) => return Err(said(&error)),
            };
            let here = buffer.spec().rate();
            if here == 0 || rate.is_some_and(|rate| rate != here) {
                return Err(broken("its sampling rate is none, or changes"));
            }
            rate = Some(here);
            mix(&buffer, &mut interleaved, &mut mono);
            if !take(&mono, here) {
                break;
            }
        }
        rate.ok_or_else(|| broken("there is no sound in it"))
    }

    /// From the packets' own times: what a header says of the whole is not asked.
    fn length_by_container(&mut self) -> Result<u64, ReadError> {
        let base = self.time_base.ok_or_else(|| broken("its packets have no times"))?;
        let (mut damaged, mut first, mut last) = (0, None, 0_i64);
        while let Some(packet) = self.next(&mut damaged)? {
            let at = packet.pts.get();
            first = Some(first.map_or(at, |first: i64| first.min(at)));
            last = last.max(at.saturating_add_unsigned(packet.dur.get()));
        }
        let ticks = u128::from(last.saturating_sub(first.unwrap_or(last)).unsigned_abs());
        let ms = ticks * 1000 * u128::from(base.numer.get()) / u128::from(base.denom.get());
        u64::try_from(ms).ok().filter(|&ms| ms > 0).ok_or_else(|| broken("there is no sound in it"))
    }
}

fn step_over(damaged: &mut u32, error: &Error) -> Result<(), ReadError> {
    *damaged += 1;
    if *damaged > MOST_DAMAGED { Err(said(error)) } else { Ok(()) }
}

/// The decoder's words are literals of its source, never the file's.
fn said(error: &Error) -> ReadError {
    match error {
        Error::DecodeError(words) | Error::Unsupported(words) | Error::LimitError(words) => broken(words),
        _ => broken("it breaks off"),
    }
}

fn container(name: &str) -> Result<Container, ReadError> {
    Ok(match name {
        "wave" => Container::Wav,
        "aiff" => Container::Aiff,
        "mp1" | "mp2" | "mp3" => Container::Mp3,
        "isomp4" => Container::Mp4,
        "matroska" => Container::Webm,
        "ogg" => Container::Ogg,
        "flac" => Container::Flac,
        "aac" => Container::Aac,
        "caf" => Container::Caf,
        other => return Err(ReadError::Unsupported(other.to_owned())),
    })
}

fn mix(buffer: &GenericAudioBufferRef<'_>, interleaved: &mut Vec<f32>, mono: &mut Vec<f32>) {
    let channels = buffer.num_planes().max(1);
    interleaved.clear();
    interleaved.resize(buffer.samples_interleaved(), 0.0);
    buffer.copy_to_slice_interleaved(&mut *interleaved);
    mono.clear();
    #[expect(clippy::cast_precision_loss, reason = "a number of channels")]
    mono.extend(interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32));
}

/// How loud a recording is, step by step.
#[derive(Default)]
struct Loudness {
    steps: Vec<f32>,
    energy: f32,
    frames: u64,
}

impl Loudness {
    fn add(&mut self, samples: &[f32], rate: u32) {
        let step = wave::frames(STEP_MS, rate).max(1);
        for sample in samples {
            self.energy += sample * sample;
            self.frames += 1;
            if self.frames == step {
                self.steps.push(std::mem::take(&mut self.energy));
                self.frames = 0;
            }
        }
    }

    /// Cuts `ms` into parts of at most `longest`, each at the quietest place near its limit.
    fn parts(&self, ms: u64, longest: u64) -> Vec<Span> {
        let longest = longest.max(4 * STEP_MS);
        let mut parts = Vec::new();
        let mut from_ms = 0;
        while ms - from_ms > longest {
            let limit = from_ms + longest;
            let to_ms = self.quietest(limit - (longest / 4).min(SEARCH_MS), limit);
            parts.push(Span { from_ms, to_ms });
            from_ms = to_ms;
        }
        parts.push(Span { from_ms, to_ms: ms });
        parts
    }

    /// The middle of the quietest pause between two times; of equally quiet ones the last, so that parts are long.
    fn quietest(&self, from_ms: u64, to_ms: u64) -> u64 {
        let step = |ms: u64| usize::try_from(ms / STEP_MS).unwrap_or(usize::MAX).min(self.steps.len());
        let (from, to) = (step(from_ms) + 1, step(to_ms));
        let Some(window) = self.steps.get(from..to) else { return to_ms };
        let pause = PAUSE_STEPS.min(window.len() / 2).max(1);
        let energy = |place: &[f32]| place.iter().sum::<f32>();
        let found = window.windows(pause).enumerate().rev().min_by(|(_, a), (_, b)| energy(a).total_cmp(&energy(b)));
        found.map_or(to_ms, |(nth, _)| (from + nth + pause / 2) as u64 * STEP_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_it_is_quiet() {
        // Ten seconds of noise, quiet from 3.6 to 4 s and from 7.0 to 7.4 s.
        let quiet = |step: usize| (360..400).contains(&step) || (700..740).contains(&step);
        let steps = (0..1_000).map(|step| if quiet(step) { 0.0 } else { 1.0 }).collect();
        let parts = Loudness { steps, ..Loudness::default() }.parts(10_000, 4_000);
        let cuts: Vec<u64> = parts.iter().map(|part| part.to_ms).collect();
        assert!(matches!(cuts.as_slice(), [3_600..=4_000, 7_000..=7_400, 10_000]), "{cuts:?}");
    }

    /// An element of a Matroska file.
    fn element(id: &[u8], content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(content.len()).unwrap() | 0x1000_0000;
        [id, &size.to_be_bytes(), content].concat()
    }

    /// What a browser records: WebM without a length in its header, sound in Opus, a block for every 20 ms.
    fn recorded(blocks: u16) -> Vec<u8> {
        let head = element(b"\x1a\x45\xdf\xa3", &element(b"\x42\x82", b"webm"));
        let scale = element(b"\x2a\xd7\xb1", &1_000_000_u32.to_be_bytes());
        let apps = [element(b"\x4d\x80", b"test"), element(b"\x57\x41", b"test")].concat();
        let info = element(b"\x15\x49\xa9\x66", &[scale, apps].concat());
        let codec =
            [element(b"\x86", b"A_OPUS"), element(b"\x63\xa2", b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0")].concat();
        let sound =
            element(b"\xe1", &[element(b"\xb5", &48_000_f32.to_be_bytes()), element(b"\x9f", b"\x01")].concat());
        let about = [element(b"\xd7", b"\x01"), element(b"\x73\xc5", b"\x01"), element(b"\x83", b"\x02")].concat();
        let tracks = element(b"\x16\x54\xae\x6b", &element(b"\xae", &[about, codec, sound].concat()));
        let block =
            |nth: u16| element(b"\xa3", &[b"\x81".as_slice(), &(nth * 20).to_be_bytes(), b"\x80\xf8\xff\xfe"].concat());
        let blocks: Vec<u8> = (0..blocks).flat_map(block).collect();
        let cluster = element(b"\x1f\x43\xb6\x75", &[element(b"\xe7", b"\0"), blocks].concat());
        [head, b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff".to_vec(), info, tracks, cluster].concat()
    }

    #[test]
    fn what_cannot_be_decoded_is_as_long_as_its_packets_say() {
        let limits = PartLimits { longest_ms: 5_000, largest: 1 << 20 };
        let recording = measure(recorded(100), limits).expect("it is measured");
        assert_eq!((recording.container, recording.parts.len()), (Container::Webm, 0));
        assert!((1_980..=2_000).contains(&recording.ms), "{recording:?}");
        let words = "Opus cannot be cut, and it is longer than one request may be";
        assert_eq!(measure(recorded(300), limits), Err(broken(words)));
    }

    #[test]
    fn noise_without_a_pause_is_cut_all_the_same() {
        let parts = Loudness { steps: vec![1.0; 1_000], ..Loudness::default() }.parts(10_000, 3_000);
        assert!(parts.len() <= 5 && parts.iter().all(|part| (1..=3_000).contains(&part.ms())), "{parts:?}");
        assert_eq!(parts.last().map(|part| part.to_ms), Some(10_000));
    }
}
