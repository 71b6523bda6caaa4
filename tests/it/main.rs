//! Integration tests: one binary, one private Postgres.

mod embedded;
mod postgres;
