//! Frequency-aware sparse attention (FASA, arXiv 2602.03152) as a policy: slices in, positions out.
//!
//! A decoder reads its whole KV cache for every token it writes. This crate decides which few rows of the cache a
//! decode step needs. It knows no tensor library, needs no standard library and no allocator, and contains no `unsafe`:
//! an inference engine hands it rotated queries and keys as `f32` slices and gets sorted token positions back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`rope`] | rotary layouts, and the *chunk*: the two dimensions that RoPE rotates together |
//! | [`criterion`] | how dominant a chunk is: contextual agreement (the paper) and attention margin |
//! | [`profile`] | the file that calibration writes and everything else reads |
//! | [`importance`] | scorers: one number per past token |
//! | [`sketch`] | the low-precision copy of the dominant chunks that scoring reads |
//! | [`select`] | the best N of n scores, in caller-provided scratch |
//! | [`budget`] | how many tokens a step may read, and which are always among them |
//! | [`policy`] | [`policy::CachePolicy`] and one file per method |
//! | [`attend`] | reference attention over chosen rows, for tests and tiny targets |
//!
//! # Features
//! `alloc` adds what must own memory (writing profiles, accumulators), `std` implies it. Without either, everything
//! that scores, selects and reads profiles still works.
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
