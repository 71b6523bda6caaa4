//! Floor 2: size-limited reads over object stores.
