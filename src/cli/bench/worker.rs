//! A worker as a child process, so that its processor time and its memory are its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use crate::config::Config;
use crate::db;
use crate::embedded::ShortLivedFolder;

use super::super::failure::Failure;
use super::end_to_end::DIMENSIONS;
use super::ground::Field;
use super::provider::Loopback;

/// The one pipeline of the benches.
pub(super) const PIPELINE: &str = "bench";

const STATUS: &str = "[pipelines.bench.status]\ncolumn = \"status\"\nwords = { skipped = \"skipped\" }";

/// How the worker is configured.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub slots: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Texts of one request.
    pub inputs: usize,
    /// What the provider is said to allow.
    pub requests_per_minute: Option<u32>,
    pub dimensions: usize,
    /// The source has files instead of texts, below this folder.
    pub files: Option<PathBuf>,
    /// Whether the rows show how far they are.
    pub status: bool,
    /// For a large file: bounds of memory, and as much as fits into them.
    pub limits: Option<Limits>,
}

/// The most memory, in mebibytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// `worker.memory`
    pub worker: u32,
    /// `parser.memory`, for each child.
    pub parser: u32,
}

impl Setup {
    /// As many do it: everything else as it is by default.
    pub(super) fn of(slots: usize) -> Self {
        Self {
            slots,
            concurrency: 8,
            inputs: 2_048,
            requests_per_minute: None,
            dimensions: DIMENSIONS,
            files: None,
            status: true,
            limits: None,
        }
    }

    /// The configuration as the worker reads it.
    pub(super) fn config(&self, field: &Field, provider: &Loopback) -> Result<Config, Failure> {
        let toml = self.toml(field, &provider.url());
        Config::read("the bench's configuration", &toml, &|_| None).map_err(|misfits| Failure::of_config(&misfits))
    }

    fn toml(&self, field: &Field, provider: &str) -> String {
        let Self { slots, concurrency, inputs, requests_per_minute, dimensions, files, status, limits } = self;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let allowed = requests_per_minute.map_or_else(String::new, |limit| format!("requests_per_minute = {limit}"));
        let status = if *status { STATUS } else { "" };
        let largest = if limits.is_some() { "largest = \"600 MB\"" } else { "" };
        let memory = limits.map_or_else(String::new, |limits| format!("memory = \"{} MiB\"", limits.worker));
        let parser = limits.map_or_else(String::new, |limits| {
            format!("memory = \"{} MiB\"\nlargest_text = \"600 MB\"\ncpu = \"10m\"\ntime = \"15m\"", limits.parser)
        });
        let file = files.as_ref().map_or_else(String::new, |folder| {
            format!(
                "[stores.files]\nkind = \"local\"\nroot = {:?}\n{largest}\n[pipelines.{PIPELINE}.file]\nstore = \"files\"\npath = \"{{path}}\"\nwithin = \"\"\n\
                 when = \"path is not null\"\n",
                folder.to_string_lossy()
            )
        });
        format!(
            r#"[database]
url = {url:?}
[worker]
slots = {slots}
listen = "off"
sweep = "1h"
{memory}
[parser]
processes = {cores}
{parser}
[providers.loopback]
kind = "openai"
url = "{provider}"
concurrency = {concurrency}
{allowed}
[models.bench]
provider = "loopback"
name = "bench"
dimensions = {dimensions}
inputs = {inputs}
[[prices]]
model = "bench"
usd = "0.00000002"
from = 2026-01-01
{file}
[pipelines.{PIPELINE}]
kind = "embed"
model = "bench"
existing = "backfill"
[pipelines.{PIPELINE}.source]
table = "bench.documents"
key = ["id"]
tenant = "tenant"
text = "{{content}}"
[pipelines.{PIPELINE}.chunks]
tokens = 500
[pipelines.{PIPELINE}.target]
table = "bench.chunks"
parent = {{ document_id = "{{id}}" }}
[pipelines.{PIPELINE}.target.columns]
chunk_index = "{{chunk.index}}"
content = "{{chunk.text}}"
tokens = "{{chunk.tokens}}"
embedding = "{{chunk.vector}}"
{status}
"#,
            url = field.url,
        )
    }
}

/// A running worker; dropping it kills it.
pub(super) struct Worker {
    child: Child,
    /// Its input: it ends with us, however we end.
    _tether: Option<ChildStdin>,
    process: u32,
    folder: ShortLivedFolder,
}

/// Longer than any machine needs to start a worker.
const START_WITHIN: Duration = Duration::from_mins(1);

impl Worker {
    /// Starts `gristmill run` and waits until it has registered its pipeline and is quiet.
    pub(super) async fn start(field: &Field, provider: &Loopback, setup: &Setup) -> Result<Self, Failure> {
        let name = format!("gristmill-bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let folder = ShortLivedFolder::make(std::env::temp_dir().join(name))?;
        let config = folder.path().join("workers.toml");
        fs::write(&config, setup.toml(field, &provider.url()))?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "--tethered", "--config"]).arg(&config).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GRISTMILL__")) {
            command.env_remove(name);
        }
        let mut child = command.spawn()?;
        let process = child.id().unwrap_or_default();
        let mut worker = Self { _tether: child.stdin.take(), child, process, folder };
        let patience = tokio::time::Instant::now() + START_WITHIN;
        while !db::bench::is_registered(&field.pool, PIPELINE).await? {
            worker.check()?;
            if tokio::time::Instant::now() > patience {
                return Err(worker.failed("the worker does not start"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        worker.rest().await;
        Ok(worker)
    }

    /// Installs the pipeline's triggers, as an operator would.
    pub(super) async fn install_triggers(&self) -> Result<(), Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["triggers", "install", "--config"]).arg(self.folder.path().join("workers.toml"));
        let output = command.stdin(Stdio::null()).output().await?;
        if output.status.success() {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "triggers cannot be installed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }

    /// Waits until it takes next to no processor time.
    pub(super) async fn rest(&self) {
        for _ in 0..100 {
            let before = self.processor_time();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.processor_time().saturating_sub(before) <= Duration::from_millis(10) {
                return;
            }
        }
    }

    /// Whether it is alive.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failed(&format!("the worker has ended ({status})"))),
        }
    }

    /// A failure, with the end of its log.
    pub(super) fn failed(&self, why: &str) -> Failure {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Failure::Failed(format!("{why}; its last lines:\n{}", lines[lines.len().saturating_sub(5)..].join("\n")))
    }

    /// What it has taken so far; nothing where the system does not say.
    pub(super) fn processor_time(&self) -> Duration {
        processor_time(self.process)
    }

    /// The most memory it has had, in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        peak_memory(self.process)
    }

    pub(super) fn process(&self) -> u32 {
        self.process
    }

    /// Ends it at once: its database goes with it.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }
}

/// What a process has taken so far; nothing where the system does not say.
pub(super) fn processor_time(process: u32) -> Duration {
    let stat = read(process, "stat");
    // The name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |nth: usize| fields.get(nth).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    // User and system time, a hundred ticks to the second on every Linux.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The most memory that a process has had, in bytes; nothing where the system does not say.
pub(super) fn peak_memory(process: u32) -> u64 {
    let status = read(process, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

fn read(process: u32, file: &str) -> String {
    fs::read_to_string(Path::new("/proc").join(process.to_string()).join(file)).unwrap_or_default()
}
