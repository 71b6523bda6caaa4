//! The child's side of recordings: their length, the quiet places in them, and parts of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::recording::{PartLimits, Recording, Span};
use super::sound::{Decoded, Sound, broken};
use super::wave::{self, Mono};
use super::wire::{Answer, Listen, ReadError};

/// Loudness is looked at in steps of this many milliseconds.
const STEP_MS: u64 = 10;
/// A pause is judged over so many steps.
const PAUSE_STEPS: usize = 30;
/// The quietest place is looked for in the last quarter of a part, and never more than half a minute before its limit.
const SEARCH_MS: u64 = 30_000;

/// Listens to a recording. Runs in the closed sandbox.
pub(super) fn listen(bytes: Vec<u8>, listen: Listen) -> Answer {
    let heard = catch_unwind(AssertUnwindSafe(|| match listen {
        Listen::Measure(limits) => measure(bytes, limits).map(Answer::Recording),
        Listen::Cut { span, limits } => cut(bytes, span, limits).map(|part| Answer::Part(STANDARD.encode(part))),
    }));
    match heard {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::Failed(error),
        // It does so again: unlike a death, a panic is the file's doing.
        Err(_) => Answer::Failed(broken("its reader gave up on it")),
    }
}

fn measure(bytes: Vec<u8>, limits: PartLimits) -> Result<Recording, ReadError> {
    let size = bytes.len() as u64;
    let mut sound = Sound::open(bytes)?;
    let container = sound.container;
    if sound.track.decoder.is_none() {
        let ms = sound.length_by_container()?;
        if ms > limits.longest_ms || size > limits.largest {
            let detail = format!("{} cannot be cut, and it is longer than one request may be", sound.track.codec);
            return Err(broken(&detail));
        }
        return Ok(Recording { container, ms, parts: Vec::new() });
    }
    let mut loudness = Loudness::default();
    let mut frames: u64 = 0;
    let Decoded { rate, padding, silent } = sound.decode(|samples, rate| {
        frames += samples.len() as u64;
        loudness.add(samples, rate);
        true
    })?;
    let ms = wave::milliseconds(frames.saturating_sub(padding), rate);
    if ms == 0 {
        return Err(broken("there is no sound in it"));
    }
    if silent {
        return Err(broken("it is silent throughout"));
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
mod tests;
