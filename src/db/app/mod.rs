//! SQL over the application's tables: built here and nowhere else, from identifiers that the catalogue knows, quoted once, with
//! types qualified. Values are always bound, as text, and cast to the column's type: keys of any type work and indexes serve.

mod assign;
mod backfill;
mod catalog;
mod census;
mod check;
mod create;
mod effects;
mod fit;
pub mod forget;
mod fragments;
pub mod grants;
mod keyless;
mod keys;
mod known;
mod leave;
mod limits;
mod load;
mod mirror;
mod own_writes;
mod parents;
mod parsed;
mod plan;
mod queue;
mod rights;
mod search;
mod shape;
mod stay;
mod steady;
mod survey;
mod sweep;
mod triggers;
mod vector;
mod vector_index;
mod verify;
mod views;
mod words;
mod write;

pub use assign::{ColumnWrite, WriteKind};
pub use backfill::{Unworked, Wanted, condition_fails_on, count_unworked, open_unworked};
pub use catalog::{Column, Table, vector_schema, vector_version};
pub use census::{Census, census, has_rows, sample_unpaid};
pub use check::{Misfit, NO_PGVECTOR, Purpose};
pub use create::{Creation, create};
pub use effects::{EffectPlan, SharedKeys, SharedPlan, SharedTable, adds_up, lock_shared, run as run_effect, settle};
pub use fit::refuses;
pub use keyless::keyless;
pub use keys::written_key;
pub use leave::take_back;
pub use limits::{Allowance, Lack, LimitPlan, Spending, prune_reservations, reserve};
pub use load::{Existing, Found, LoadedRow, existing_chunks, load, load_up_to, lock_chunks};
pub use mirror::{WorkedOn, mirror, mirror_in_hand};
pub use parents::{ParentPlan, lock_parents};
pub use plan::{Plan, TargetPlan, resolve};
pub use queue::{Answer, QueuePlan, answer, asked_for, lock_marked, mark, mirror_asking, open_asked, open_unmet};
pub use search::{Hit, has_vectors, search};
pub use stay::update_chunks;
pub use survey::{Reference, Survey, Surveyed, buckets, commonest_word, has_function, survey};
pub use sweep::{ClosingIn, Slice, next_key, next_leaver, open_unreadable, sweep_leavers, sweep_set};
pub use triggers::{TriggerSet, install, installed, remove, try_out};
pub use vector::{SparseKind, VectorKind, VectorType};
pub use vector_index::{
    Builder as IndexBuilder, Building, Distance, IndexWanted, Indexed, Means as IndexMeans, VectorIndex, building,
    cancel as cancel_index, create as create_index, indexed, run_each as run_index, table_of as index_table,
};
pub use verify::{Finding, FindingKind, mend, orphans, verify};
pub use views::{ViewSet, run as run_views, view_name, view_removal, view_set, with_views};
pub use write::{
    ChunkRow, LockedRow, SourceUpdate, begin_writer, clear, delete_chunks, insert_chunks, lock_sources, reread,
    set_writer, update_sources, which_exist,
};

/// Quotes an identifier.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Quotes a string literal; only for words that come from the configuration's fixed vocabulary or names already checked.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `unnest($1::text[], …) with ordinality as asked (gm_k1, …, gm_nth)` for keys of `count` columns. The names are odd so that a
/// configured expression over the row never meets them.
fn asked(count: usize) -> String {
    let arrays: Vec<String> = (1..=count).map(|nth| format!("${nth}::text[]")).collect();
    let names: Vec<String> = (1..=count).map(|nth| format!("gm_k{nth}")).collect();
    format!("unnest({}) with ordinality as asked ({}, gm_nth)", arrays.join(", "), names.join(", "))
}

/// Keys turned on their side: one array per key column.
fn by_column(keys: &[&crate::domain::SourceKey], count: usize) -> Vec<Vec<String>> {
    (0..count).map(|nth| keys.iter().map(|key| key.0.get(nth).cloned().unwrap_or_default()).collect()).collect()
}
