//! Floor 1: every metric and log field in one place, and where both go.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// A request to a provider came back.
pub fn provider_request(provider: &str, model: &str, inputs: usize, ok: bool, took: Duration) {
    let labels = [("provider", provider.to_owned()), ("model", model.to_owned()), ("ok", ok.to_string())];
    counter!("gristmill_provider_requests_total", &labels).increment(1);
    counter!("gristmill_provider_inputs_total", &labels).increment(u64::try_from(inputs).unwrap_or(u64::MAX));
    histogram!("gristmill_provider_request_seconds", &labels).record(took.as_secs_f64());
}

/// A request had to wait, or did not go out, for what its provider allows in a minute.
pub fn budget_wait(provider: &str, model: &str, wait: Duration) {
    let labels = [("provider", provider.to_owned()), ("model", model.to_owned())];
    histogram!("gristmill_budget_wait_seconds", &labels).record(wait.as_secs_f64());
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

/// How long ago the backlog that is told was counted.
pub fn backlog_age(age: Duration) {
    gauge!("gristmill_backlog_age_seconds").set(age.as_secs_f64());
}

/// A model's price is not known: an alarm, never 0.
pub fn unknown_price(provider: &str, model: &str) {
    gauge!("gristmill_unknown_price", "provider" => provider.to_owned(), "model" => model.to_owned()).set(1.0);
}

/// Whether the database answered a moment ago: where it is 0, what is told of jobs is old.
pub fn database_up(up: bool) {
    gauge!("gristmill_database_up").set(f64::from(u8::from(up)));
}

/// Whether requests to a model wait for its provider: those under the credential that tenants share, or under some tenant's own.
pub fn lane_paused(provider: &str, model: &str, own: bool, paused: bool) {
    let key = if own { "own" } else { "shared" };
    let labels = [("provider", provider.to_owned()), ("model", model.to_owned()), ("key", key.to_owned())];
    gauge!("gristmill_lane_paused", &labels).set(f64::from(u8::from(paused)));
}

/// Whether a person paused a pipeline.
pub fn pipeline_paused(pipeline: &str, paused: bool) {
    gauge!("gristmill_pipeline_paused", "pipeline" => pipeline.to_owned()).set(f64::from(u8::from(paused)));
}

/// Webhooks were delivered, refused (and are tried again) or given up.
pub fn webhooks(pipeline: &str, outcome: &'static str, count: usize) {
    counter!("gristmill_webhooks_total", "pipeline" => pipeline.to_owned(), "outcome" => outcome)
        .increment(u64::try_from(count).unwrap_or(u64::MAX));
}

/// A pipeline's webhooks that are not delivered, and the age of the oldest that is still tried.
pub fn undelivered(pipeline: &str, waiting: i64, failed: i64, oldest_seconds: f64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; webhooks are counted far below 2^52")]
    for (state, count) in [("waiting", waiting as f64), ("failed", failed as f64)] {
        gauge!("gristmill_webhooks", "pipeline" => pipeline.to_owned(), "state" => state).set(count);
    }
    gauge!("gristmill_webhooks_oldest_seconds", "pipeline" => pipeline.to_owned()).set(oldest_seconds);
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// Sends logs to standard error. `GRISTMILL_LOG`, else `RUST_LOG`, says which; else `filter` does.
pub fn init_logs(format: LogFormat, filter: &str) {
    let asked = ["GRISTMILL_LOG", "RUST_LOG"].into_iter().filter_map(|name| std::env::var(name).ok());
    let asked = asked.filter(|filter| !filter.is_empty()).find_map(|filter| EnvFilter::try_new(filter).ok());
    let filter = asked.unwrap_or_else(|| EnvFilter::new(filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Whoever read the log may be gone: to say so where nobody reads would be a panic, and jobs in hand would be lost.
        .log_internal_errors(false);
    // An error says that an embedding program has its own.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Pretty => {
            let colours =
                std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.compact().with_ansi(colours).with_target(false).try_init()
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let trace = std::backtrace::Backtrace::capture();
        let trace = (trace.status() == std::backtrace::BacktraceStatus::Captured).then(|| trace.to_string());
        tracing::error!(place, trace, "a part panicked: {}", said(panic.payload()));
    }));
}

/// What a panic says, where nobody but us can have written it: words that are put together may quote a text (a slice of a string at
/// the wrong place quotes all of it).
pub fn said(panic: &(dyn std::any::Any + Send)) -> &'static str {
    panic.downcast_ref::<&'static str>().copied().unwrap_or("its words may quote a text and are not repeated")
}

/// Where metrics are kept until somebody reads them.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Starts collecting; none where another recorder collects already.
    pub fn install() -> Option<Self> {
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
        let handle = PrometheusBuilder::new().set_buckets(&buckets).ok()?.install_recorder().ok()?;
        describe_all();
        Some(Self(handle))
    }

    /// Everything collected, as Prometheus reads it.
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Folds what was observed into its buckets; memory grows with the observations until somebody does.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn describe_all() {
    describe_counter!("gristmill_provider_requests_total", "Requests to providers that came back");
    describe_counter!("gristmill_provider_inputs_total", "Texts in requests to providers");
    describe_histogram!("gristmill_provider_request_seconds", "How long requests to providers took");
    describe_histogram!(
        "gristmill_budget_wait_seconds",
        "How far away the moment was at which requests were allowed, of those that had to wait"
    );
    describe_counter!("gristmill_claimed_total", "Jobs claimed by this process");
    describe_counter!("gristmill_attempts_total", "Attempts of this process by how they ended");
    describe_histogram!("gristmill_attempt_seconds", "How long attempts took");
    describe_gauge!("gristmill_jobs", "Unfinished and failed jobs by pipeline and state");
    describe_gauge!(
        "gristmill_oldest_seconds",
        "How long the oldest unfinished job has been due, by pipeline and state; one that was tried counts from its opening"
    );
    describe_gauge!("gristmill_backlog_age_seconds", "How long ago gristmill_jobs and the ages of jobs were counted");
    describe_gauge!("gristmill_lag_seconds", "Age of a pipeline's oldest job that nobody has finished");
    describe_gauge!(
        "gristmill_database_up",
        "1 where the database answers; where it is 0, gristmill_jobs and the ages are old"
    );
    describe_gauge!(
        "gristmill_lane_paused",
        "1 where requests to a model wait: its provider is away or refuses the credential, the shared one or a tenant's own"
    );
    describe_gauge!("gristmill_pipeline_paused", "1 where a person paused a pipeline");
    describe_counter!("gristmill_webhooks_total", "Tries of this process to deliver webhooks, by how they ended");
    describe_gauge!("gristmill_webhooks", "Webhooks that wait to be delivered or were given up");
    describe_gauge!("gristmill_webhooks_oldest_seconds", "Age of a pipeline's oldest webhook that is still tried");
    describe_gauge!("gristmill_unknown_price", "1 where a model has no price: usage is booked without a cost");
    describe_gauge!("gristmill_slots", "Jobs that this process may have in hand at once");
    describe_gauge!("gristmill_in_hand", "Jobs that this process has in hand");
}

/// The age of a pipeline's oldest unfinished job.
pub fn lag(pipeline: &str, seconds: f64) {
    gauge!("gristmill_lag_seconds", "pipeline" => pipeline.to_owned()).set(seconds);
}

/// How many jobs this process has in hand, of how many it may.
pub fn hands(in_hand: usize, slots: usize) {
    let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    gauge!("gristmill_in_hand").set(float(in_hand));
    gauge!("gristmill_slots").set(float(slots));
}
