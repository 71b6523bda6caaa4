//! The sound in a recording, packet by packet: nothing is believed that a header says of the whole.

use std::io::Cursor;

use bytes::Bytes;
use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions, ReadOnlySource};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, TimeBase};

use super::header;
use super::recording::Container;
use super::wire::ReadError;

/// Damaged places that are stepped over before a file is given up.
const MOST_DAMAGED: u32 = 1_000;
/// So many damaged packets in a row are no scratch but another kind of sound, which its decoder does not take up midway.
const MOST_IN_A_ROW: u32 = 40;
/// What an encoder adds behind the last sound to fill its block, in frames. More than that which a header would have cut off is sound.
const MOST_PADDING: u64 = 8_192;
/// Speech cannot be understood at a lower rate, and a few bytes would last for hours.
const LOWEST_RATE: u32 = 2_000;

pub(super) fn broken(detail: &str) -> ReadError {
    ReadError::broken("audio", detail)
}

/// An opened recording: its first track of sound.
pub(super) struct Sound {
    reader: Box<dyn FormatReader>,
    pub container: Container,
    pub track: Track,
    /// Read already, to see whether there is any.
    first: Option<Packet>,
    damaged: u32,
}

/// A track of sound. Files that were joined end to end have one after another.
pub(super) struct Track {
    id: u32,
    pub codec: String,
    is_opus: bool,
    time_base: Option<TimeBase>,
    /// None where this build has no decoder: then its length is what the container's packets say.
    pub decoder: Option<Box<dyn AudioDecoder>>,
}

/// What was found while everything was decoded.
pub(super) struct Decoded {
    pub rate: u32,
    /// So many frames at the end are an encoder's.
    pub padding: u64,
    /// No channel ever holds anything but zeros.
    pub silent: bool,
}

impl Sound {
    pub fn open(mut bytes: Vec<u8>) -> Result<Self, ReadError> {
        if bytes.is_empty() {
            return Err(broken("it is empty"));
        }
        header::mend(&mut bytes);
        let bytes = Bytes::from(bytes);
        Self::of(Box::new(Cursor::new(bytes.clone())), &bytes).or_else(|error| {
            // A file that is cut off points beyond its end: read from the front, it goes on up to there.
            let stream = ReadOnlySource::new(Cursor::new(bytes.clone()));
            Self::of(Box::new(stream), &bytes).map_err(|_| error)
        })
    }

    fn of(source: Box<dyn MediaSource>, bytes: &[u8]) -> Result<Self, ReadError> {
        let source = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
        let probe = symphonia::default::get_probe();
        let reader = probe.probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default()).map_err(
            |error| match error {
                // What a prober says when nothing it knows is there.
                Error::Unsupported(_) | Error::IoError(_) => header::not_read(bytes),
                error => said(&error),
            },
        )?;
        let container = container(reader.format_info().short_name)?;
        let track = Track::of(&*reader)?;
        let mut sound = Self { reader, container, track, first: None, damaged: 0 };
        sound.first = Some(sound.next()?.ok_or_else(|| broken("there is no sound in it"))?);
        Ok(sound)
    }

    /// The next packet of the track, or of the one that follows it; damaged places are stepped over, and a file that breaks off
    /// ends there.
    fn next(&mut self) -> Result<Option<Packet>, ReadError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track.id => return Ok(Some(packet)),
                Ok(Some(_)) => {}
                Ok(None) | Err(Error::IoError(_)) => return Ok(None),
                Err(Error::ResetRequired) => self.track = Track::of(&*self.reader)?,
                Err(error @ Error::DecodeError(_)) => self.step_over(&error)?,
                Err(error) => return Err(said(&error)),
            }
        }
    }

    fn step_over(&mut self, error: &Error) -> Result<(), ReadError> {
        self.damaged += 1;
        if self.damaged > MOST_DAMAGED { Err(said(error)) } else { Ok(()) }
    }

    /// Decodes everything, mixed to one channel; `take` says whether to go on.
    pub fn decode(&mut self, mut take: impl FnMut(&[f32], u32) -> bool) -> Result<Decoded, ReadError> {
        let (mut rate, mut padding, mut silent, mut in_a_row) = (None, 0_u64, true, 0);
        let (mut interleaved, mut mono) = (Vec::new(), Vec::new());
        while let Some(mut packet) = self.next()? {
            // What a header says of the end is not believed: an estimate or a lie would cut off sound.
            let beyond = std::mem::replace(&mut packet.trim_end, Duration::ZERO);
            packet.dur = packet.dur.saturating_add(beyond);
            padding = if beyond == Duration::ZERO { 0 } else { padding.saturating_add(beyond.get()) };
            let decoder = self.track.decoder.as_mut().ok_or_else(|| broken("it cannot be decoded"))?;
            let buffer = match decoder.decode(&packet) {
                Ok(buffer) => buffer,
                Err(error @ (Error::DecodeError(_) | Error::IoError(_))) => {
                    self.step_over(&error)?;
                    in_a_row += 1;
                    if in_a_row > MOST_IN_A_ROW {
                        return Err(broken(
                            "a stretch of it is damaged, or of another sampling rate or number of channels",
                        ));
                    }
                    // It takes its time all the same.
                    let lost = self.track.frames_of(&packet, rate);
                    mono.clear();
                    mono.resize(lost, 0.0);
                    if rate.is_some_and(|rate| !take(&mono, rate)) {
                        break;
                    }
                    continue;
                }
                Err(error) => return Err(said(&error)),
            };
            in_a_row = 0;
            let here = buffer.spec().rate();
            if here < LOWEST_RATE {
                return Err(broken(&format!("its sampling rate of {here} Hz is too low for speech")));
            }
            if rate.is_some_and(|rate| rate != here) {
                return Err(broken("its sampling rate changes"));
            }
            rate = Some(here);
            mix(&buffer, &mut interleaved, &mut mono);
            silent = silent && interleaved.iter().all(|&sample| sample == 0.0);
            if !take(&mono, here) {
                break;
            }
        }
        let rate = rate.ok_or_else(|| broken("there is no sound in it"))?;
        Ok(Decoded { rate, padding: if padding <= MOST_PADDING { padding } else { 0 }, silent })
    }

    /// From the packets themselves: what a header says of the whole is not asked. Pauses that are not sent count by the packets'
    /// times, and sound whose times lie, or begin anew, by what Opus' packets say.
    pub fn length_by_container(&mut self) -> Result<u64, ReadError> {
        let base = self.track.time_base.ok_or_else(|| broken("its packets have no times"))?;
        let (mut first, mut last, mut opus) = (i64::MAX, i64::MIN, 0_u64);
        while let Some(packet) = self.next()? {
            if self.track.decoder.is_some() {
                return Err(broken("recordings of different codecs were joined to it"));
            }
            first = first.min(packet.pts.get());
            last = last.max(packet.pts.get().saturating_add_unsigned(packet.dur.get()));
            if self.track.is_opus {
                opus = opus.saturating_add(opus_microseconds(&packet.data));
            }
        }
        let ticks = u128::from(last.abs_diff(first.min(last)));
        let ms = ticks * 1000 * u128::from(base.numer.get()) / u128::from(base.denom.get());
        let ms = u64::try_from(ms).unwrap_or(u64::MAX).max(opus / 1000);
        if ms > 0 { Ok(ms) } else { Err(broken("there is no sound in it")) }
    }
}

impl Track {
    fn of(reader: &dyn FormatReader) -> Result<Self, ReadError> {
        let track = reader.default_track(TrackType::Audio).ok_or_else(|| broken("there is no sound in it"))?;
        let params = track.codec_params.as_ref().and_then(|params| params.audio());
        let params = params.ok_or_else(|| broken("there is no sound in it"))?;
        let codecs = symphonia::default::get_codecs();
        // A provider may hear what this build cannot, like Opus, or a profile of AAC.
        let decoder = codecs.make_audio_decoder(params, &AudioDecoderOptions::default()).ok();
        let known = codecs.get_audio_decoder(params.codec).map(|known| known.codec.info.short_name);
        let is_opus = params.codec == CODEC_ID_OPUS;
        let codec = match known {
            _ if is_opus => "Opus".to_owned(),
            Some(name) => format!("this kind of {name}"),
            None => format!("codec {}", params.codec),
        };
        Ok(Self { id: track.id, codec, is_opus, time_base: track.time_base, decoder })
    }

    /// As many frames as a packet says it has, where its times are counted in them.
    fn frames_of(&self, packet: &Packet, rate: Option<u32>) -> usize {
        let in_frames = |base: TimeBase| base.numer.get() == 1 && Some(base.denom.get()) == rate;
        let frames = if self.time_base.is_some_and(in_frames) { packet.dur.get().min(MOST_PADDING) } else { 0 };
        usize::try_from(frames).unwrap_or_default()
    }
}

/// How long an Opus packet sounds, by its first byte, and by the second where that counts its frames (RFC 6716, 3.1).
pub(super) fn opus_microseconds(packet: &[u8]) -> u64 {
    let Some(&toc) = packet.first() else { return 0 };
    let frame = match toc >> 3 {
        config @ 0..=11 => [10_000, 20_000, 40_000, 60_000][usize::from(config % 4)],
        config @ 12..=15 => [10_000, 20_000][usize::from(config % 2)],
        config => [2_500, 5_000, 10_000, 20_000][usize::from(config % 4)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => packet.get(1).map_or(0, |count| u64::from(count & 0x3f)),
    };
    frame * frames
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
