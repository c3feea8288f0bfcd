//! Frequency-aware sparse attention (FASA, arXiv 2602.03152) as a policy: slices in, positions out.
//!
//! A decoder reads its whole KV cache for every token it writes. This crate decides which few rows of the cache a
//! decode step needs. It knows no tensor library, needs no standard library and no allocator, and contains no `unsafe`:
//! an inference engine hands it rotated queries and keys as `f32` slices and gets sorted token positions back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`rope`] | rotary layouts, and the *chunk*: the two dimensions that RoPE rotates together |
//! | [`criterion`] | how dominant a chunk is: contextual agreement (the paper), attention margin, greedy sets |
//! | [`profile`] | the file that calibration writes and everything else reads |
//! | [`importance`] | scorers: one number per past token |
//! | [`sketch`] | the low-precision copy of the dominant chunks that scoring reads |
//! | [`select`] | the best N of n scores, in caller-provided scratch |
//! | [`budget`] | how many tokens a step may read, in which layer, and which are always among them |
//! | [`policy`] | the traits [`policy::CachePolicy`] (selects) and [`policy::EvictingPolicy`] (drops for good), one file per method |
//! | [`attend`] | reference attention over chosen rows, for tests and tiny targets |
//!
//! # Features
//! Each only adds. Without any, everything that scores, selects, evicts and reads profiles works in memory that the caller
//! provides: slices, or values of constant size ([`policy::MemoryArray`], [`policy::ResidentArray`],
//! [`select::top_n_fixed`]).
//!
//! - `alloc`: what must own memory, such as writing profiles (`profile::Profile`) and accumulators (`criterion::Tally`).
//! - `serde`: `Serialize` and `Deserialize` on settings and, with `alloc`, on exported profiles (`profile::Export`). The
//!   crate `serde` itself is always there, since the profile reader decodes with it (through postcard, without
//!   allocating); the feature only adds the public impls.
//! - `std`: both, and their `std` support. The default.
//!
//! Floating-point functions come from `libm` in every build, so that a target without `std` selects the same tokens.
//!
//! Rust 1.87 or later, which is what `heapless` 0.9 asks for. `.ci/run` builds every set of features with exactly that
//! version; the other crates of the workspace, and the tests, may ask for a later one.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod attend;
pub mod budget;
pub mod config;
pub mod criterion;
pub mod error;
pub mod importance;
pub mod policy;
pub mod profile;
pub mod rope;
pub mod rows;
pub mod select;
pub mod sketch;

pub use budget::{Budget, Guarantees};
pub use config::{FasaConfig, Scope};
pub use error::{Error, Result};
pub use rope::{Chunks, Pairing};
pub use rows::Rows;

// The README's program runs with the tests. Only there is that file read: a published crate does not hold it.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../../README.md")]
mod readme {}
