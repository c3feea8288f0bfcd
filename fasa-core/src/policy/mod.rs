//! Policies: which cached tokens a decode step attends to. One file per method.
//!
//! A method implements one of two traits, and an engine executes it; neither knows the other.
//!
//! - [`CachePolicy`] **selects**: the cache keeps every token, a decode step reads some. The engine hands over a [`Step`]
//!   (queries and cached keys of one KV head) and reads positions from a [`Selection`].
//! - [`EvictingPolicy`] **evicts**: rows that it drops are gone. The engine hands over a [`Pass`] and compacts its cache by
//!   the book ([`Residents`]) that the policy keeps.
//!
//! Methods that rank tokens one by one implement [`Importance`](crate::importance::Importance) instead, and become a
//! `CachePolicy` through [`Ranked`], which adds the guarantees, the top-N and, if wanted, top-p.
//!
//! | method | type | trait | publication |
//! |---|---|---|---|
//! | full | [`Full`] | `CachePolicy` | |
//! | oracle | [`Oracle`] | `Importance` | |
//! | FASA | [`Fasa`] | `Importance` | arXiv 2602.03152 |
//! | StreamingLLM | [`Streaming`] | `CachePolicy` and `EvictingPolicy`: the same sets | arXiv 2309.17453 |
//! | Quest | [`Quest`] | `CachePolicy` | arXiv 2406.10774 |
//! | SparQ | [`Sparq`] | `Importance` | arXiv 2312.04985 |
//! | random | [`Random`] | `Importance` | |
//! | SnapKV | [`SnapKv`] | `EvictingPolicy` | arXiv 2404.14469 |
//! | H2O | [`H2o`] | `EvictingPolicy` | arXiv 2306.14048 |
//! | TOVA | [`Tova`] | `EvictingPolicy` | arXiv 2401.06104 |
//! | R-KV | [`RKv`] | `EvictingPolicy` | arXiv 2505.24133 |
//!
//! Every method takes [`Guarantees`](crate::budget::Guarantees), except `Full` and `Streaming`, whose sets follow from
//! position alone.

pub mod evicting;
mod fasa;
mod fixed;
mod full;
mod h2o;
mod oracle;
pub mod quest;
mod random;
mod ranked;
mod residents;
mod rkv;
mod snapkv;
pub mod sparq;
mod streaming;
mod tova;

pub use evicting::{Attention, EvictingPolicy, Pass, Phase};
#[cfg(feature = "alloc")]
pub use fasa::OwnedPlan;
pub use fasa::{Fasa, Plan};
pub use fixed::{MemoryArray, select_fixed};
pub use full::Full;
pub use h2o::H2o;
pub use oracle::Oracle;
pub use quest::{CacheShape, Quest};
pub use random::Random;
pub use ranked::Ranked;
#[cfg(feature = "alloc")]
pub use residents::ResidentVec;
pub use residents::{ResidentArray, Residents};
pub use rkv::RKv;
pub use snapkv::SnapKv;
pub use sparq::Sparq;
pub use streaming::Streaming;
pub use tova::Tova;

use crate::config::Scope;
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::rows::Rows;
use crate::sketch::SketchRows;

/// One decode step of one KV head.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Layer, from 0.
    pub layer: usize,
    /// KV head within the layer, from 0.
    pub kv_head: usize,
    /// Rotated queries of the query heads that share this KV head, `[G, d]`.
    pub queries: Rows<'a>,
    /// Rotated keys of all tokens seen, `[n, d]`; the last one is the current token's.
    pub keys: Rows<'a>,
    /// Sketches of the same n tokens: none, one for the KV head, or one per query head.
    pub sketches: &'a [SketchRows<'a>],
}

impl Step<'_> {
    /// Index of query head `g` of this group among the layer's query heads.
    pub fn query_head(&self, g: usize) -> usize {
        self.kv_head * self.queries.len() + g
    }

    /// Checks the shapes against one another.
    ///
    /// # Errors
    /// [`Error::Length`] for queries, keys or sketches that do not fit; [`Error::Range`] for no query or no token.
    pub fn validate(&self) -> Result<()> {
        if self.queries.is_empty() || self.keys.is_empty() {
            return Err(Error::Range { what: "step", problem: "it has at least one query head and its own token" });
        }
        expect_length("queries", self.queries.dim(), self.keys.dim())?;
        self.sketches.iter().try_for_each(|s| expect_length("sketch", s.len(), self.keys.len()))
    }
}

/// Where a policy writes its token sets: one per KV head or one per query head, ascending positions.
#[derive(Debug)]
pub struct Selection<'a> {
    positions: &'a mut [u32],
    lengths: &'a mut [usize],
    capacity: usize,
}

impl<'a> Selection<'a> {
    /// Room for `lengths.len()` sets of up to `capacity` positions each; `positions` is `[sets, capacity]`.
    ///
    /// # Errors
    /// [`Error::Length`] if `positions` is of another size.
    pub fn new(positions: &'a mut [u32], lengths: &'a mut [usize], capacity: usize) -> Result<Self> {
        expect_length("positions", positions.len(), capacity.saturating_mul(lengths.len()))?;
        lengths.fill(0);
        Ok(Self { positions, lengths, capacity })
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.lengths.len()
    }

    /// Positions that a set can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Set `s`, ascending.
    ///
    /// # Panics
    /// If there is no such set.
    pub fn set(&self, s: usize) -> &[u32] {
        &self.positions[s * self.capacity..][..self.lengths[s]]
    }

    /// The set that query head `g` of the group attends to: its own, or the one of the group.
    pub fn of_query(&self, g: usize) -> &[u32] {
        self.set(if self.sets() == 1 { 0 } else { g })
    }

    /// Lets `write` fill set `s`; it returns how many positions it wrote.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no such set; whatever `write` returns.
    pub fn fill(&mut self, s: usize, write: impl FnOnce(&mut [u32]) -> Result<usize>) -> Result<()> {
        let Some(length) = self.lengths.get_mut(s) else {
            return Err(Error::Range { what: "selection", problem: "it has fewer sets than the policy writes" });
        };
        *length = write(&mut self.positions[s * self.capacity..][..self.capacity])?.min(self.capacity);
        Ok(())
    }

    /// Fills set `s` with all of `tokens` positions.
    fn fill_all(&mut self, s: usize, tokens: usize) -> Result<()> {
        self.fill(s, |out| {
            out.iter_mut().zip(0..tokens as u32).for_each(|(slot, position)| *slot = position);
            Ok(tokens)
        })
    }

    /// `Ok` if there is one set for each that a policy of `scope` writes, with room for `tokens` positions.
    fn expect(&self, scope: Scope, group: usize, tokens: usize) -> Result<()> {
        expect_length("selection.sets", self.sets(), scope.rows(group, 1))?;
        expect_capacity("selection.capacity", self.capacity, tokens)
    }
}

/// Memory that selecting needs, provided by the caller and reused between calls.
#[derive(Debug)]
pub struct Memory<'s> {
    /// Scores: `[sets, n]` numbers, and n more; for policies that evict, as for two sets.
    pub scores: &'s mut [f32],
    /// At least [`scratch_len`](crate::select::scratch_len)`(budget)` entries.
    pub entries: &'s mut [u64],
}

impl Memory<'_> {
    /// Length of [`scores`](Memory::scores) for `sets` token sets over `n` tokens.
    pub const fn scores_len(sets: usize, n: usize) -> usize {
        (sets + 1) * n
    }
}

/// Selects the cached tokens that a decode step attends to, out of all tokens seen: nothing is ever lost by it.
///
/// For methods that drop rows for good see [`EvictingPolicy`].
pub trait CachePolicy {
    /// The method's name, as on command lines and in reports.
    fn name(&self) -> &'static str;

    /// Whether the query heads of a group attend to the same tokens.
    fn scope(&self) -> Scope;

    /// Writes at most `budget` positions per set, ascending and unique, the current token among them.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Capacity`] or [`Error::Range`] if shapes or memory do not fit, [`Error::Missing`] if
    /// the method needs something that the step lacks.
    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<()>;

    /// Forgets what the policy knows about tokens from position `tokens` on, in all layers and heads; 0 starts another
    /// sequence. Engines call it whenever they take tokens back or reuse the policy. Most policies know nothing.
    fn rewind(&mut self, tokens: usize) {
        let _ = tokens;
    }
}
