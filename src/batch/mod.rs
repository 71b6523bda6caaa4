//! Floor 3: the places where the work of many jobs meets. Handlers await them as if they were alone; each isolates failure by
//! bisecting until the one guilty text or job stands alone.

mod batcher;
mod committer;
mod effects;
mod facts;
mod gate;
mod lane;
mod loader;
mod reuse;
mod speech;
mod transaction;

pub use batcher::{Batcher, EmbedFailure, LaneSettings, OfJob, Paid, Text};
pub use committer::{Charge, CommitError, Committed, Committer, DoneWork, End, Work};
pub use facts::JobFacts;
pub use gate::LaneStatus;
pub use loader::{LoadError, Loaded, Loader};
pub use reuse::keep;
pub use speech::{Piece, SpeechLane, SpeechSettings, minutes};
