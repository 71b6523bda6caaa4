//! The vectors of a large document lie in a file without a name while the rest is paid for: in memory they would be more than all else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::domain::{Embedding, check_vector};

/// The vectors of one job may have this part of `worker.memory`; more lie in a file.
const PART: u64 = 8;
/// What is written at once.
const BLOCK: usize = 4 << 20;

/// So many bytes the vectors of one job may take in memory, where that is what a worker may.
pub fn most_in_memory(memory: u64) -> u64 {
    memory / PART
}

/// A vector that is paid for.
#[derive(Debug, Clone)]
pub enum Held {
    Here(Arc<Embedding>),
    /// The one at this place in a file.
    Spilled(Arc<Spilled>, usize),
}

impl Held {
    /// The vector itself.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self) -> io::Result<Arc<Embedding>> {
        match self {
            Self::Here(embedding) => Ok(Arc::clone(embedding)),
            Self::Spilled(spilled, nth) => spilled.get(*nth).map(Arc::new),
        }
    }
}

/// Vectors in a file; the system removes it with the last of them, however the worker ends.
#[derive(Debug)]
pub struct Spilled {
    dimensions: usize,
    file: Option<Arc<File>>,
    blocks: Vec<Block>,
}

/// Vectors that lie one behind the other.
#[derive(Debug)]
enum Block {
    /// From this byte of the file on.
    At(u64),
    /// There was no room for it.
    Here(Vec<u8>),
}

impl Spilled {
    fn get(&self, nth: usize) -> io::Result<Embedding> {
        let length = self.dimensions * size_of::<f32>();
        let (block, place) = (nth / in_a_block(self.dimensions), nth % in_a_block(self.dimensions) * length);
        let mut bytes = vec![0; length];
        match (self.blocks.get(block), &self.file) {
            (Some(Block::At(at)), Some(file)) => {
                let place = u64::try_from(place).map_err(io::Error::other)?;
                file.read_exact_at(&mut bytes, at + place)?;
            }
            (Some(Block::Here(all)), _) => {
                bytes.copy_from_slice(all.get(place..place + length).ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            _ => return Err(io::ErrorKind::NotFound.into()),
        }
        let vector = bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        Ok(Embedding { vector, sparse: None })
    }
}

fn in_a_block(dimensions: usize) -> usize {
    (BLOCK / (dimensions * size_of::<f32>()).max(1)).max(1)
}

/// Vectors of one job as they come.
pub(super) struct Spilling {
    dimensions: usize,
    /// None: all of them may be in memory.
    spilled: Option<Spilled>,
    /// What is still to be written.
    open: Vec<u8>,
    count: usize,
    written: u64,
    is_full: bool,
}

/// Where a vector is, until all are there.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Here(Arc<Embedding>),
    Nth(usize),
}

impl Spilling {
    /// For so many vectors, of which `most` bytes may be in memory. Weights of tokens are not written.
    pub fn new(vectors: usize, dimensions: usize, sparse: bool, most: u64) -> Self {
        let bytes = u64::try_from(vectors.saturating_mul(dimensions * size_of::<f32>())).unwrap_or(u64::MAX);
        let spilled = (bytes > most && !sparse).then(|| {
            let file = tempfile::tempfile().inspect_err(tell).ok().map(Arc::new);
            Spilled { dimensions, file, blocks: Vec::new() }
        });
        Self { dimensions, spilled, open: Vec::new(), count: 0, written: 0, is_full: false }
    }

    /// Takes a vector in. One that is no good stays as it is: whoever looks at it has to see that.
    pub async fn keep(&mut self, embedding: Arc<Embedding>) -> Place {
        let is_good = check_vector(&embedding.vector, self.dimensions).is_ok() && embedding.sparse.is_none();
        if self.spilled.is_none() || !is_good {
            return Place::Here(embedding);
        }
        self.open.extend(embedding.vector.iter().flat_map(|value| value.to_le_bytes()));
        self.count += 1;
        if self.count.is_multiple_of(in_a_block(self.dimensions)) {
            self.write().await;
        }
        Place::Nth(self.count - 1)
    }

    /// All that came: nothing more does.
    pub async fn end(mut self) -> Ended {
        self.write().await;
        Ended(self.spilled.map(Arc::new))
    }

    async fn write(&mut self) {
        let Some(spilled) = self.spilled.as_mut().filter(|_| !self.open.is_empty()) else { return };
        let block = std::mem::take(&mut self.open);
        let Some(file) = spilled.file.clone().filter(|_| !self.is_full) else {
            spilled.blocks.push(Block::Here(block));
            return;
        };
        let (at, length) = (self.written, block.len());
        // A disk may take its time.
        let write = move || (file.write_all_at(&block, at), block);
        match tokio::task::spawn_blocking(write).await {
            Ok((Ok(()), _)) => {
                self.written += u64::try_from(length).unwrap_or(u64::MAX);
                spilled.blocks.push(Block::At(at));
            }
            Ok((Err(error), block)) => {
                tell(&error);
                self.is_full = true;
                spilled.blocks.push(Block::Here(block));
            }
            // The runtime ends, and with it this task.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Where they are now.
pub(super) struct Ended(Option<Arc<Spilled>>);

impl Ended {
    pub fn held(&self, place: Place) -> Option<Held> {
        match (place, &self.0) {
            (Place::Here(embedding), _) => Some(Held::Here(embedding)),
            (Place::Nth(nth), Some(spilled)) => Some(Held::Spilled(Arc::clone(spilled), nth)),
            (Place::Nth(_), None) => None,
        }
    }
}

fn tell(error: &io::Error) {
    let folder = std::env::temp_dir();
    tracing::warn!(
        error = %error,
        folder = %folder.display(),
        "the vectors of a large document stay in memory: no file can be written for them; TMPDIR says where"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(nth: usize, dimensions: usize) -> Arc<Embedding> {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let vector = (0..dimensions).map(|place| (nth * 7 + place + 1) as f32).collect();
        Arc::new(Embedding { vector, sparse: None })
    }

    async fn come_back(mut spilling: Spilling, count: usize, dimensions: usize) -> (Vec<Held>, Option<Arc<Spilled>>) {
        let mut places = Vec::new();
        for nth in 0..count {
            places.push(spilling.keep(embedding(nth, dimensions)).await);
        }
        let ended = spilling.end().await;
        let held: Vec<Held> = places.into_iter().map(|place| ended.held(place).unwrap()).collect();
        for (nth, held) in held.iter().enumerate() {
            assert_eq!(held.get().unwrap(), embedding(nth, dimensions));
        }
        (held, ended.0)
    }

    /// Two blocks and a half.
    const COUNT: usize = 2_621;
    const DIMENSIONS: usize = 1_000;

    #[tokio::test]
    async fn what_is_too_much_for_memory_comes_back_from_a_file() {
        let spilling = Spilling::new(COUNT, DIMENSIONS, false, 1 << 20);
        let (held, spilled) = come_back(spilling, COUNT, DIMENSIONS).await;
        assert!(held.iter().all(|held| matches!(held, Held::Spilled(..))));
        assert!(spilled.unwrap().blocks.iter().all(|block| matches!(block, Block::At(_))));

        let spilling = Spilling::new(10, DIMENSIONS, false, 1 << 20);
        let (held, spilled) = come_back(spilling, 10, DIMENSIONS).await;
        assert!(held.iter().all(|held| matches!(held, Held::Here(_))) && spilled.is_none());
    }

    #[tokio::test]
    async fn what_no_file_takes_stays_in_memory() {
        let mut spilling = Spilling::new(COUNT, DIMENSIONS, false, 1 << 20);
        // It takes nothing: it is open for reading only.
        spilling.spilled.as_mut().unwrap().file = Some(Arc::new(File::open("/dev/null").unwrap()));
        let (held, spilled) = come_back(spilling, COUNT, DIMENSIONS).await;
        assert!(held.iter().all(|held| matches!(held, Held::Spilled(..))));
        assert!(spilled.unwrap().blocks.iter().all(|block| matches!(block, Block::Here(_))));
    }

    #[tokio::test]
    async fn a_vector_that_is_no_good_is_seen_as_it_came() {
        let mut spilling = Spilling::new(COUNT, DIMENSIONS, false, 0);
        let short = embedding(0, DIMENSIONS - 1);
        assert!(matches!(spilling.keep(Arc::clone(&short)).await, Place::Here(kept) if kept == short));
    }
}
