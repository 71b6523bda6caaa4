//! Floor 0: the words of the trade as types. Nothing here does input or output.

mod chunk;
mod document;
mod ids;
mod job;
mod outcome;
mod vectors;

pub use chunk::{Chunk, Digest};
pub use document::{Document, Heading};
pub use ids::{JobId, LeaseId, OwnerId, Revision, SourceKey};
pub use job::{ClaimedJob, JobState};
pub use outcome::{ErrorKind, Outcome, Reason};
pub use vectors::{BadVector, Embedding, Sparse, VOCABULARY, check_vector};
