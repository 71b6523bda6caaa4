//! The drivers over real HTTP and real model files.

mod bge_m3;
mod local;
mod openai;
