//! Floor 1: every metric and log field in one place.

use std::time::Duration;

/// STUB until the observability slice.
pub fn provider_request(_provider: &str, _model: &str, _inputs: usize, _ok: bool, _took: Duration) {}
