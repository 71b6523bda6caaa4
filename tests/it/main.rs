//! The integration tests: one binary, so that one server of each kind serves them all.

mod fake_openai;
mod providers;
