//! A Burn transformer with frequency-aware sparse attention (FASA).
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`], [`checkpoint`], [`text`] | a Hugging Face folder: `config.json`, safetensors, `tokenizer.json` |
//! | [`gguf`] | the same in one GGUF file |
//! | [`model`] | the decoder |
//! | [`device`] | devices by name, and what keeps one from being used |
//! | [`dtype`] | number formats of weights and cache |
//! | [`cache`] | keys, values and sketches, appended in place |
//! | [`session`] | saved texts: cache and tokens in a file |
//! | [`method`] | how a decode step attends: dense, FASA, or any policy of `fasa-core` |
//! | [`evicting`] | methods that evict, as selections over a shared cache |
//! | [`trace`] | queries and keys of a text that was read |
//! | [`ops`] | the operations that Burn lacks, routed to each backend's kernels |
//! | [`generate`] | prompt in, tokens out as they come |
//! | [`sequence`], [`chat`] | texts that go on: a cache with its tokens, conversations |
//! | [`sampling`] | from logits to the next token |
//! | [`measure`] | contexts of noise, attention alone: what `fasa bench` runs |
//! | [`calibrate`] | finds the dominant chunks of a model |
//!
//! The device is chosen at run time ([`DeviceName::open`], `Device::flex()`, ...); which devices exist is chosen by cargo
//! features.

pub mod cache;
pub mod calibrate;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod dtype;
pub mod error;
pub mod evicting;
pub mod generate;
pub mod gguf;
pub mod measure;
pub mod method;
pub mod model;
pub mod ops;
pub mod random;
pub mod rope;
pub mod sampling;
pub mod sequence;
pub mod session;
pub mod text;
pub mod trace;

pub use burn::tensor::Device;
pub use device::DeviceName;
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use fasa_cpu::HugePages;
