//! Recordings: the parent's side of measuring and cutting them, which like all reading of files happens in a child.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::wire::{Answer, Listen, Request};
use super::{ExtractError, Extractor, Input, process};

/// A part is never larger, whatever its provider takes: it is held in memory while it is cut. More than half an hour.
const LARGEST_PART: u64 = 64 * 1024 * 1024;

/// What one request to a provider may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartLimits {
    pub longest_ms: u64,
    pub largest: u64,
}

impl PartLimits {
    /// No part is larger.
    pub fn largest_part(self) -> u64 {
        self.largest.min(LARGEST_PART)
    }
}

/// What a recording is, measured from its sound and not from what anybody says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    pub container: Container,
    pub ms: u64,
    /// The parts it is to be cut into; none: it fits into one request as it is.
    pub parts: Vec<Span>,
}

/// A stretch of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub from_ms: u64,
    pub to_ms: u64,
}

impl Span {
    pub fn ms(self) -> u64 {
        self.to_ms.saturating_sub(self.from_ms)
    }
}

/// What kind of file it is: providers go by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    Wav,
    Aiff,
    Mp3,
    Mp4,
    Webm,
    Ogg,
    Flac,
    Aac,
    Caf,
}

impl Container {
    pub fn extension(self) -> &'static str {
        match self {
            Self::Wav => "wav",
            Self::Aiff => "aiff",
            Self::Mp3 => "mp3",
            Self::Mp4 => "m4a",
            Self::Webm => "webm",
            Self::Ogg => "ogg",
            Self::Flac => "flac",
            Self::Aac => "aac",
            Self::Caf => "caf",
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Wav => "audio/wav",
            Self::Aiff => "audio/aiff",
            Self::Mp3 => "audio/mpeg",
            Self::Mp4 => "audio/mp4",
            Self::Webm => "audio/webm",
            Self::Ogg => "audio/ogg",
            Self::Flac => "audio/flac",
            Self::Aac => "audio/aac",
            Self::Caf => "audio/x-caf",
        }
    }
}

impl Extractor {
    /// Measures a recording, and says how to cut it where it exceeds what a request may hold.
    ///
    /// # Errors
    /// See [`ExtractError`]; what cannot be heard is broken or unsupported.
    pub async fn measure(&self, bytes: &Bytes, limits: PartLimits) -> Result<Recording, ExtractError> {
        match self.listen(bytes, Listen::Measure(limits)).await? {
            Answer::Recording(recording) if holds(&recording) => Ok(recording),
            _ => Err(other_answer()),
        }
    }

    /// One part of a recording, as a WAV file of one channel.
    ///
    /// # Errors
    /// See [`ExtractError`].
    pub async fn cut(&self, bytes: &Bytes, span: Span, limits: PartLimits) -> Result<Bytes, ExtractError> {
        match self.listen(bytes, Listen::Cut { span, limits }).await? {
            Answer::Part(part) => STANDARD
                .decode(part)
                .ok()
                .filter(|part| part.starts_with(b"RIFF") && part.len() as u64 <= limits.largest)
                .map(Bytes::from)
                .ok_or_else(other_answer),
            _ => Err(other_answer()),
        }
    }

    async fn listen(&self, bytes: &Bytes, listen: Listen) -> Result<Answer, ExtractError> {
        let input = Input { bytes: bytes.clone(), ..Input::default() };
        let request = Request { listen: Some(listen), ..Request::new(&self.settings, &input, self.settings.pdf) };
        match process::ask(&self.program, &self.settings, &request, bytes.clone(), false).await? {
            Answer::Failed(error) => Err(error.into()),
            Answer::Panicked => Err(ExtractError::Crashed("its reader panicked".to_owned())),
            answer => Ok(answer),
        }
    }
}

fn other_answer() -> ExtractError {
    ExtractError::Crashed("it gave another answer than asked for".to_owned())
}

/// A child is believed only parts that follow each other from the beginning to the end.
fn holds(recording: &Recording) -> bool {
    let Recording { ms, parts, .. } = recording;
    let (first, last) = (parts.first().map_or(0, |part| part.from_ms), parts.last().map_or(*ms, |part| part.to_ms));
    *ms > 0
        && first == 0
        && last == *ms
        && parts.iter().all(|part| part.from_ms < part.to_ms)
        && parts.windows(2).all(|pair| pair[0].to_ms == pair[1].from_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_believed_only_where_they_cover_the_recording() {
        let check = |ms, spans: &[(u64, u64)], believed| {
            let parts = spans.iter().map(|&(from_ms, to_ms)| Span { from_ms, to_ms }).collect();
            assert_eq!(holds(&Recording { container: Container::Wav, ms, parts }), believed, "{ms} {spans:?}");
        };
        check(9, &[], true);
        check(9, &[(0, 4), (4, 9)], true);
        check(0, &[], false);
        check(9, &[(0, 4), (5, 9)], false);
        check(9, &[(0, 4), (4, 8)], false);
        check(9, &[(1, 9)], false);
        check(9, &[(0, 4), (4, 4), (4, 9)], false);
    }
}
