//! Floor 3: the places where the work of many jobs meets. Handlers await them as if they were alone; each isolates failure by
//! bisecting until the one guilty text or job stands alone.

mod approach;
mod asking;
mod batcher;
mod blame;
mod budget;
mod ceiling;
mod committer;
mod effects;
mod ending;
mod facts;
mod fit;
mod flights;
mod gate;
mod item;
mod keyed;
mod lane;
mod leave;
mod loader;
mod memory;
mod parents;
mod portions;
mod repeat;
mod reuse;
mod sending;
mod slots;
mod speech;
mod spill;
mod transaction;
mod vital;

pub use approach::Approaching;
pub use batcher::{Batcher, Bought, EmbedFailure, LaneSettings, OfJob, Paid, Text};
pub use ceiling::CeilingOf;
pub use committer::{Charge, CommitError, Committed, Committer, DoneWork, End, Work};
pub use facts::JobFacts;
pub use fit::Fit;
pub use gate::LaneStatus;
pub use keyed::Keyed;
pub use loader::{LoadError, Loaded, Loader};
pub use memory::{Memory, Weight};
pub use repeat::{Repeated, repeat};
pub use reuse::keep;
pub use speech::{Piece, SpeechLane, SpeechSettings, minutes};
pub use spill::{Held, Spilled, most_in_memory};
pub use vital::{Broken, Vital};
