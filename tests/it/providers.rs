//! The drivers over real HTTP and real model files.

mod local;
mod openai;
