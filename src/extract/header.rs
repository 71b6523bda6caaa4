//! A recording's header, where it says too little to read on by it, or why nothing can read on.

use std::ops::Range;

use file_format::FileFormat;

use super::kind;
use super::wire::ReadError;

/// The codecs of a WAV file there is a reader for: PCM, Microsoft's ADPCM, floating point, A-law, µ-law, IMA's ADPCM, and the tag
/// that says to look further.
const WAV_CODECS: [u16; 7] = [0x0001, 0x0002, 0x0003, 0x0006, 0x0007, 0x0011, 0xfffe];
const MP3_IN_WAV: u16 = 0x0055;
/// Wave64 opens with a GUID instead of four letters.
const WAVE64: &[u8] = b"riff\x2e\x91\xcf\x11";

/// Who writes a WAV file to a pipe does not know its length and leaves it at 0: its sound goes on to the end of the file.
pub(super) fn mend(bytes: &mut [u8]) {
    let Some((_, data)) = chunks(bytes).find(|(id, _)| id == b"data") else { return };
    if data.is_empty() && data.end < bytes.len() {
        // What ffmpeg writes there, and readers know.
        bytes[4..8].fill(0xff);
        bytes[data.start - 4..data.start].fill(0xff);
    }
}

/// What is said of a file in which no recording was found.
pub(super) fn not_read(bytes: &[u8]) -> ReadError {
    let unsupported = |name: &str| ReadError::Unsupported(name.to_owned());
    match codec_of_wav(bytes) {
        Some(MP3_IN_WAV) => return unsupported("WAV with MP3 inside"),
        Some(codec) if !WAV_CODECS.contains(&codec) => {
            return ReadError::Unsupported(format!("WAV with codec {codec:#06x} inside"));
        }
        _ => {}
    }
    if bytes.starts_with(b"RF64") || bytes.starts_with(b"BW64") {
        return unsupported("RF64");
    }
    if bytes.starts_with(WAVE64) {
        return unsupported("Wave64");
    }
    if is_of_ours(bytes) {
        return ReadError::broken("audio", "it is cut off or damaged");
    }
    match kind::unsupported(FileFormat::from_bytes(bytes)) {
        ReadError::Unsupported(name) if name == "unknown" => unsupported("unknown: no recording that can be heard"),
        named => named,
    }
}

/// Whether it opens like a container there is a reader for.
fn is_of_ours(bytes: &[u8]) -> bool {
    let opens = |mark: &&[u8]| bytes.starts_with(mark);
    let marks: [&[u8]; 7] = [b"RIFF", b"FORM", b"OggS", b"fLaC", b"caff", b"ID3", b"\x1a\x45\xdf\xa3"];
    let is_frame = bytes.first_chunk().is_some_and(|[sync, rest]| *sync == 0xff && rest & 0xe0 == 0xe0);
    marks.iter().any(opens) || bytes.get(4..8) == Some(b"ftyp") || is_frame
}

fn codec_of_wav(bytes: &[u8]) -> Option<u16> {
    let (_, format) = chunks(bytes).find(|(id, _)| id == b"fmt ")?;
    bytes.get(format)?.first_chunk().map(|tag| u16::from_le_bytes(*tag))
}

/// The chunks of a WAV file by name, and where they say their content is.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], Range<usize>)> {
    let is_wav = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE");
    let mut at = if is_wav { 12 } else { bytes.len() };
    std::iter::from_fn(move || {
        let (id, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let start = at + 8;
        let end = start.saturating_add(usize::try_from(u32::from_le_bytes(*rest.first_chunk()?)).ok()?);
        // They begin at even places.
        at = end.saturating_add(end % 2);
        Some((*id, start..end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(codec: u16, said: u32) -> Vec<u8> {
        let mut file = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        file.extend_from_slice(&codec.to_le_bytes());
        file.extend_from_slice(b"\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
        file.extend_from_slice(&said.to_le_bytes());
        file.extend_from_slice(b"sounds");
        file
    }

    #[test]
    fn only_a_length_of_nothing_is_mended() {
        for (said, then) in [(0, u32::MAX), (6, 6), (99, 99)] {
            let mut file = wav(1, said);
            mend(&mut file);
            assert_eq!(file[40..44], then.to_le_bytes(), "{said}");
        }
        let mut empty = wav(1, 0);
        empty.truncate(44);
        mend(&mut empty);
        assert_eq!(empty[40..44], [0; 4]);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let check = |bytes: &[u8], want: &str| {
            let said = match not_read(bytes) {
                ReadError::Unsupported(name) => name,
                ReadError::Broken { detail, .. } => detail,
                other => panic!("{other:?}"),
            };
            assert_eq!(said, want);
        };
        check(&wav(0x55, 6), "WAV with MP3 inside");
        check(&wav(0x161, 6), "WAV with codec 0x0161 inside");
        check(&wav(1, 6), "it is cut off or damaged");
        check(b"RF64\xff\xff\xff\xffWAVEds64", "RF64");
        check(b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0", "Wave64");
        check(b"\0\0\0\x1cftypM4A \0\0\x02\0", "it is cut off or damaged");
        check(b"\xff\xfb\x90\x00 and nothing else", "it is cut off or damaged");
        check(b"#!AMR\n<", "Adaptive Multi-Rate (audio/amr)");
        check(b"\x07\x01\x02\x03", "unknown: no recording that can be heard");
    }
}
