//! Floor 1: every metric and log field in one place.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

/// A request to a provider came back.
pub fn provider_request(provider: &str, model: &str, inputs: usize, ok: bool, took: Duration) {
    let labels = [("provider", provider.to_owned()), ("model", model.to_owned()), ("ok", ok.to_string())];
    counter!("gristmill_provider_requests_total", &labels).increment(1);
    counter!("gristmill_provider_inputs_total", &labels).increment(u64::try_from(inputs).unwrap_or(u64::MAX));
    histogram!("gristmill_provider_request_seconds", &labels).record(took.as_secs_f64());
}

/// Jobs were claimed.
pub fn claimed(pipeline: &str, jobs: usize) {
    counter!("gristmill_claimed_total", "pipeline" => pipeline.to_owned())
        .increment(u64::try_from(jobs).unwrap_or(u64::MAX));
}

/// An attempt ended.
pub fn attempt(pipeline: &str, outcome: &'static str, took: Duration) {
    counter!("gristmill_attempts_total", "pipeline" => pipeline.to_owned(), "outcome" => outcome).increment(1);
    histogram!("gristmill_attempt_seconds", "pipeline" => pipeline.to_owned()).record(took.as_secs_f64());
}

/// The backlog of one pipeline and state.
pub fn backlog(pipeline: &str, state: &str, jobs: i64, oldest_seconds: Option<f64>) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; jobs are counted far below 2^52")]
    gauge!("gristmill_jobs", "pipeline" => pipeline.to_owned(), "state" => state.to_owned()).set(jobs as f64);
    if let Some(oldest) = oldest_seconds {
        gauge!("gristmill_oldest_seconds", "pipeline" => pipeline.to_owned(), "state" => state.to_owned()).set(oldest);
    }
}

/// A model's price is not known: an alarm, never 0.
pub fn unknown_price(provider: &str, model: &str) {
    gauge!("gristmill_unknown_price", "provider" => provider.to_owned(), "model" => model.to_owned()).set(1.0);
}
