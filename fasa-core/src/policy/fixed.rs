//! Fixed-capacity results for targets without an allocator.

use super::{CachePolicy, Memory, Selection, Step};
use crate::config::Scope;
use crate::error::{Error, Result};

/// [`Memory`] of constant size, for a static or the stack.
///
/// `SCORES` is [`Memory::scores_len`]`(sets, tokens)` for the longest context, `ENTRIES` is
/// [`scratch_len`](crate::select::scratch_len)`(budget)`.
#[derive(Debug, Clone)]
pub struct MemoryArray<const SCORES: usize, const ENTRIES: usize> {
    scores: [f32; SCORES],
    entries: [u64; ENTRIES],
}

impl<const SCORES: usize, const ENTRIES: usize> MemoryArray<SCORES, ENTRIES> {
    /// Memory to select in.
    pub const fn new() -> Self {
        Self { scores: [0.0; SCORES], entries: [0; ENTRIES] }
    }

    /// The memory, for one call.
    pub fn view(&mut self) -> Memory<'_> {
        Memory { scores: &mut self.scores, entries: &mut self.entries }
    }
}

impl<const SCORES: usize, const ENTRIES: usize> Default for MemoryArray<SCORES, ENTRIES> {
    fn default() -> Self {
        Self::new()
    }
}

/// The one token set that `policy` selects for a step, ascending: for policies that decide per KV head, and for groups of
/// one query head. `N` bounds the set; its budget is the smaller of `budget` and `N`.
///
/// # Errors
/// [`Error::Range`] if the policy selects one set per query head and there are several; else as [`CachePolicy::select`].
///
/// # Examples
/// ```
/// use fasa_core::policy::{MemoryArray, Oracle, Ranked, Step, select_fixed};
/// use fasa_core::{Guarantees, Rows, Scope};
/// # fn main() -> fasa_core::Result<()> {
/// let mut policy = Ranked::new("oracle", Oracle { scope: Scope::KvHead }, Guarantees::CURRENT);
/// let step = Step {
///     layer: 0,
///     kv_head: 0,
///     queries: Rows::contiguous(&[1.0, 0.0], 2)?,
///     keys: Rows::contiguous(&[0.0, 9.0, 5.0, 0.0, 1.0, 0.0, 2.0, 0.0], 2)?,
///     sketches: &[],
/// };
/// let mut memory = MemoryArray::<8, 64>::new();
/// let kept = select_fixed::<2>(&mut policy, &step, 2, &mut memory.view())?;
/// assert_eq!(kept, [1, 3]); // the best and the current token
/// # Ok(())
/// # }
/// ```
pub fn select_fixed<const N: usize>(
    policy: &mut dyn CachePolicy,
    step: &Step<'_>,
    budget: usize,
    memory: &mut Memory<'_>,
) -> Result<heapless::Vec<u32, N>> {
    if policy.scope() == Scope::QueryHead && step.queries.len() != 1 {
        return Err(Error::Range { what: "policy", problem: "it selects several sets, this call returns one" });
    }
    let (mut positions, mut lengths) = ([0; N], [0]);
    let mut selection = Selection::new(&mut positions, &mut lengths, N)?;
    policy.select(step, budget.min(N), memory, &mut selection)?;
    let kept = selection.set(0);
    heapless::Vec::from_slice(kept).map_err(|_| Error::Capacity { what: "N", want: kept.len(), got: N })
}
