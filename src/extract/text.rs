use std::borrow::Cow;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::builder::Builder;
use super::wire::ReadError;
use crate::domain::Document;

/// How much of a file is looked at to tell its kind.
const SAMPLE: usize = 8192;

/// Plain text: decoded and cleaned, nothing else.
pub(super) fn read(text: &str, mut builder: Builder) -> Result<Document, ReadError> {
    builder.block(text)?;
    Ok(builder.finish())
}

/// Whether the bytes are more likely a text in some encoding than anything else.
pub(super) fn looks_like_text(bytes: &[u8]) -> bool {
    if Encoding::for_bom(bytes).is_some() || utf16_without_mark(bytes).is_some() {
        return true;
    }
    let sample = &bytes[..bytes.len().min(SAMPLE)];
    let odd = sample.iter().filter(|&&byte| byte < 0x20 && !b"\t\n\x0c\r\x08\x1b".contains(&byte)).count();
    odd * 100 <= sample.len()
}

/// Decodes by byte order mark, then by what the file says of itself (`label`), then by looking at the bytes.
pub(super) fn decode<'bytes>(bytes: &'bytes [u8], label: Option<&str>) -> Cow<'bytes, str> {
    let (encoding, bytes) = match Encoding::for_bom(bytes) {
        Some((encoding, mark)) => (encoding, &bytes[mark..]),
        None => (guess(bytes, label), bytes),
    };
    encoding.decode_without_bom_handling(bytes).0
}

fn guess(bytes: &[u8], label: Option<&str>) -> &'static Encoding {
    if let Some(encoding) = utf16_without_mark(bytes) {
        return encoding;
    }
    // Valid UTF-8 with anything but ASCII in it is hardly ever something else, whatever a label says.
    if std::str::from_utf8(bytes).is_ok() {
        return UTF_8;
    }
    if let Some(encoding) = label.and_then(|label| Encoding::for_label(label.as_bytes())) {
        return encoding;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(bytes, true);
    detector.guess(None, Utf8Detection::Allow)
}

/// UTF-16 shows itself by its NULs: every other byte of a Western text is one, and always on the same side.
fn utf16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let pairs = bytes[..bytes.len().min(SAMPLE)].as_chunks::<2>().0;
    let zeros = |side: usize| pairs.iter().filter(|pair| pair[side] == 0 && pair[1 - side] != 0).count();
    let (high_first, high_last) = (zeros(0), zeros(1));
    match pairs.len() {
        0 | 1 => None,
        all if high_last * 2 > all && high_first * 20 < all => Some(UTF_16LE),
        all if high_first * 2 > all && high_last * 20 < all => Some(UTF_16BE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], label: Option<&str>, text: &str) {
        assert!(looks_like_text(bytes), "{text}");
        assert_eq!(decode(bytes, label), text);
    }

    fn utf16(text: &str, mark: bool, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
        mark.then_some(0xFEFF).into_iter().chain(text.encode_utf16()).flat_map(order).collect()
    }

    #[test]
    fn encodings_are_found() {
        check("\u{feff}Grüße".as_bytes(), None, "Grüße");
        check("Grüße".as_bytes(), Some("latin1"), "Grüße");
        check(
            b"Viele Gr\xfc\xdfe aus K\xf6ln, wo das M\xe4rchen sp\xe4t begann.",
            None,
            "Viele Grüße aus Köln, wo das Märchen spät begann.",
        );
        check(b"caf\xe9", Some("iso-8859-1"), "café");
        check(&utf16("Grüße 語", true, u16::to_le_bytes), None, "Grüße 語");
        check(&utf16("Grüße 語", true, u16::to_be_bytes), None, "Grüße 語");
        check(&utf16("Without a mark", false, u16::to_le_bytes), None, "Without a mark");
        check(&utf16("Without a mark", false, u16::to_be_bytes), None, "Without a mark");
        check(&utf16("One\0two\0", true, u16::to_le_bytes), None, "One\0two\0");
    }

    #[test]
    fn other_files_are_no_text() {
        assert!(!looks_like_text(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0"));
        assert!(!looks_like_text(&[0; 64]));
    }
}
