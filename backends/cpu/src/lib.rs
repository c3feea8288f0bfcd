//! CPU kernels for frequency-aware sparse attention, over plain slices.
//!
//! One decode step of one layer: [`dense_decode`] reads every cached row, [`fasa_decode`] scores the sketch, selects, and
//! reads the chosen rows only. [`policy_decode`] does the same for any [`CachePolicy`](fasa_core::policy::CachePolicy).
//! Work is spread over rayon's current thread pool; [`awake`] keeps its threads ready between the kernels of a decode step.
//! Nothing here knows a tensor library.
//!
//! Each kernel is written once over vectors of sixteen lanes and compiled for every instruction set that the machine may
//! turn out to have ([`isa`]); the naive versions in `fasa-core` are the oracle in the tests.
#![deny(missing_docs)]
// Kernels are loops over tiles of registers: several arrays share an index.
#![allow(clippy::needless_range_loop)]

pub mod attention;
mod exp;
pub mod fasa;
pub mod huge;
pub mod isa;
pub mod layer;
pub mod linear;
pub mod machine;
pub mod map;
mod partial;
pub mod policy;
pub mod prefill;
pub mod selected;
mod simd;
mod source;
pub mod team;
pub mod tier;
mod tip;

pub use attention::dense_decode;
pub use fasa::fasa_decode;
pub use huge::HugePages;
pub use layer::{LayerCache, LayerSketch, Numbers};
pub use policy::policy_decode;
pub use prefill::causal_attention;
pub use selected::Selected;
pub use team::awake;
pub use tier::Tier;
