use sha2::{Digest as _, Sha256};

/// A piece of a document's text, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// 0-based, in reading order, without gaps.
    pub index: usize,
    /// What is stored.
    pub text: String,
    /// What is embedded, where that differs from `text` (a title, a section, a passage prefix before it).
    pub embedded: Option<String>,
    /// Tokens of what is embedded.
    pub tokens: usize,
    /// 1-based page the chunk starts on, where the format has pages.
    pub page: Option<u32>,
    /// The nearest heading above the chunk's start.
    pub section: Option<String>,
    /// That heading's level, 1 the highest.
    pub level: Option<u8>,
    /// Offsets of `text` in the document's text, in characters.
    pub start: usize,
    pub end: usize,
}

impl Chunk {
    /// The text that goes to the model.
    pub fn embedded(&self) -> &str {
        self.embedded.as_deref().unwrap_or(&self.text)
    }

    /// The digest of what is embedded: two chunks with the same digest have the same vector.
    pub fn digest(&self) -> Digest {
        Digest::of(self.embedded())
    }
}

/// The first 16 bytes of a SHA-256: enough that two texts of one row never meet, small enough to keep for each chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of a text that nobody knows: no text has it.
    pub const NONE: Self = Self([0; 16]);

    /// The digest of a text's exact bytes.
    pub fn of(text: &str) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&hash[..16]);
        Self(short)
    }

    /// Many digests as one column: 16 bytes each, in order.
    pub fn pack(digests: impl IntoIterator<Item = Self>) -> Vec<u8> {
        digests.into_iter().flat_map(|digest| digest.0).collect()
    }

    /// The reverse of [`Digest::pack`]; a trailing part of a digest is ignored.
    pub fn unpack(bytes: &[u8]) -> Vec<Self> {
        bytes.as_chunks::<16>().0.iter().copied().map(Self).collect()
    }
}
