//! Policies that evict: what they drop is gone, and the memory with it.
//!
//! A selecting policy ([`CachePolicy`](super::CachePolicy)) reads a few rows of a cache that keeps all of them. An
//! [`EvictingPolicy`] decides which rows there still are. The two are different traits so that an engine cannot take one
//! for the other: nothing behind a `CachePolicy` ever loses a token.
//!
//! # The life of a cache head
//! A *cache head* is what the cache stores rows for: usually one KV head of one layer, shared by G query heads. (Published
//! code often evicts per query head, from a cache with the KV heads repeated; then every query head is a cache head with
//! G = 1.) For each of them an engine keeps [`Residents`], the book about its rows.
//!
//! 1. **Prefill.** Write the prompt's rows, [`Residents::append`] as many, and call [`evict`](EvictingPolicy::evict) with
//!    the queries of the last [`window`](EvictingPolicy::window)`(Phase::Prefill)` tokens. A prompt that is read in parts
//!    may do this after each part; with a budget of `usize::MAX` the policy looks and drops nothing.
//! 2. **Decode step.** Write the new token's row, append 1, attend to *all* rows, and call `evict` with the queries of the
//!    last `window(Phase::Decode)` tokens, or with the attention weights if the step computed them anyway.
//! 3. After each call [`Residents::compact`] moves the rows that remain; rows keep their order and, already rotated, their
//!    absolute positions ([`Residents::positions`]). An engine that would rather move rows seldom passes `usize::MAX` on
//!    most steps and the budget on every sixteenth, say.
//!
//! ```
//! use fasa_core::policy::{Attention, EvictingPolicy, Memory, Pass, Phase, ResidentArray, Tova};
//! use fasa_core::{Rows, attend::attend, select::scratch_len};
//! # fn main() -> fasa_core::Result<()> {
//! let (budget, mut policy) = (3, Tova::default());
//! let mut book = ResidentArray::<8>::new();
//! let (mut keys, mut values) = ([0.0_f32; 8 * 2], [0.0_f32; 8 * 2]);
//! let (mut scores, mut entries) = ([0.0; Memory::scores_len(2, 8)], [0; scratch_len(3)]);
//!
//! // A prompt of four tokens, head dimension 2. Its last query likes tokens 0 and 2.
//! keys[..8].copy_from_slice(&[3.0, 0.0, 0.1, 0.0, 2.0, 0.0, 0.2, 0.0]);
//! let mut rows = book.view();
//! rows.append(4)?;
//! let query = [1.0, 0.0];
//! let queries = [Rows::contiguous(&query, 2)?]; // one query head, one token
//! let pass = Pass::new(Phase::Prefill, Rows::contiguous(&keys[..8], 2)?, Attention::Queries(&queries));
//! let mut memory = Memory { scores: &mut scores, entries: &mut entries };
//! let kept = policy.evict(&pass, budget, &mut rows, &mut memory)?;
//! rows.compact(&mut keys, 2)?;
//! rows.compact(&mut values, 2)?;
//! assert!(rows.positions().eq([0, 2, 3]));
//!
//! // A decode step: token 4 joins, everything that remains is attended to, token 3 has to go.
//! keys[2 * kept..2 * kept + 2].copy_from_slice(&[0.5, 0.0]);
//! rows.append(1)?;
//! let (now, mut out) = (2 * rows.len(), [0.0; 2]);
//! let (k, v) = (Rows::contiguous(&keys[..now], 2)?, Rows::contiguous(&values[..now], 2)?);
//! attend(&query, k, v, None, &mut out)?;
//! policy.evict(&Pass::new(Phase::Decode, k, Attention::Queries(&queries)), budget, &mut rows, &mut memory)?;
//! rows.compact(&mut keys, 2)?;
//! rows.compact(&mut values, 2)?;
//! assert!(rows.positions().eq([0, 2, 4]));
//! # Ok(())
//! # }
//! ```

use super::{Memory, Residents};
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::importance::{dot, softmax};
use crate::rows::Rows;

/// What has just been computed when a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The prompt, or a part of it.
    Prefill,
    /// One new token, or a small draft of tokens.
    Decode,
}

/// What the newest tokens attended to: entry g of the slice belongs to query head g of the group.
///
/// The last token is the newest; with w tokens, token j sees all rows but the last w − 1 − j.
#[derive(Debug, Clone, Copy)]
pub enum Attention<'a> {
    /// Nothing is known. Enough for policies with a [`window`](EvictingPolicy::window) of 0.
    None,
    /// Rotated queries, `[w, head_dim]` per query head. The policy computes `softmax(q.K/√d)` from the pass's keys.
    Queries(&'a [Rows<'a>]),
    /// Attention weights that the engine computed, `[w, n]` per query head, 0 for rows that a token does not see.
    Weights(&'a [Rows<'a>]),
}

/// One cache head right after its newest rows were written.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    phase: Phase,
    keys: Rows<'a>,
    attention: Attention<'a>,
    layer: usize,
    head: usize,
}

impl<'a> Pass<'a> {
    /// A pass over a cache head with rotated `keys`, `[n, head_dim]`: the rows that remained and the new ones.
    pub fn new(phase: Phase, keys: Rows<'a>, attention: Attention<'a>) -> Self {
        Self { phase, keys, attention, layer: 0, head: 0 }
    }

    /// Says which cache head it is. Only policies that treat heads differently need to know; none here does.
    #[must_use]
    pub fn at(self, layer: usize, head: usize) -> Self {
        Self { layer, head, ..self }
    }

    /// What has just been computed.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The rotated keys of all rows, `[n, head_dim]`.
    pub fn keys(&self) -> Rows<'a> {
        self.keys
    }

    /// Layer, from 0.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Cache head within the layer, from 0.
    pub fn head(&self) -> usize {
        self.head
    }

    fn observed(&self) -> &'a [Rows<'a>] {
        match self.attention {
            Attention::None => &[],
            Attention::Queries(heads) | Attention::Weights(heads) => heads,
        }
    }

    /// Query heads whose attention is known.
    pub fn group(&self) -> usize {
        self.observed().len()
    }

    /// Newest tokens whose attention is known.
    pub fn window(&self) -> usize {
        self.observed().first().map_or(0, Rows::len)
    }

    /// Checks the shapes against one another and against the book.
    ///
    /// # Errors
    /// [`Error::Length`] if keys or attention have other shapes, [`Error::Range`] for no row or more tokens than rows.
    pub fn validate(&self, residents: &Residents<'_>) -> Result<()> {
        let n = self.keys.len();
        expect_length("keys", n, residents.len())?;
        if n == 0 || self.window() > n {
            return Err(Error::Range {
                what: "pass",
                problem: "it has at least one row, and one for each query's token",
            });
        }
        let width = match self.attention {
            Attention::Weights(_) => n,
            _ => self.keys.dim(),
        };
        for head in self.observed() {
            expect_length("attention.width", head.dim(), width)?;
            expect_length("attention.window", head.len(), self.window())?;
        }
        Ok(())
    }

    /// Writes the attention weights of token `j` of the window, for query head `g`, over all rows, `[n]`. Time
    /// O(n head_dim), or O(n) where the engine brought weights.
    ///
    /// # Errors
    /// [`Error::Missing`] if the pass has no such token or query head, [`Error::Length`] unless `out` has n places.
    pub fn weights(&self, g: usize, j: usize, out: &mut [f32]) -> Result<()> {
        let Some(head) = self.observed().get(g).filter(|head| j < head.len()) else {
            return Err(Error::Missing { what: "attention" });
        };
        let n = self.keys.len();
        expect_length("out", out.len(), n)?;
        if let Attention::Weights(_) = self.attention {
            expect_length("attention.width", head.dim(), n)?;
            out.copy_from_slice(head.row(j));
            return Ok(());
        }
        let (seen, unseen) = out.split_at_mut(n - (head.len() - 1 - j).min(n));
        for (score, key) in seen.iter_mut().zip(self.keys.iter()) {
            *score = dot(head.row(j), key);
        }
        softmax(seen, 1.0 / libm::sqrtf(self.keys.dim() as f32));
        unseen.fill(0.0);
        Ok(())
    }

    /// Adds up the weights of the last `window` tokens of every query head into `sums`, `[n]`; all there are, if fewer.
    ///
    /// # Errors
    /// [`Error::Missing`] if the pass has none, [`Error::Length`] unless `scratch` and `sums` have n places.
    pub fn add_weights(&self, window: usize, scratch: &mut [f32], sums: &mut [f32]) -> Result<()> {
        expect_length("sums", sums.len(), self.keys.len())?;
        if self.window() == 0 {
            return Err(Error::Missing { what: "attention" });
        }
        for g in 0..self.group() {
            for j in self.window().saturating_sub(window)..self.window() {
                self.weights(g, j, scratch)?;
                sums.iter_mut().zip(&*scratch).for_each(|(sum, weight)| *sum += weight);
            }
        }
        Ok(())
    }
}

/// Decides which rows of a cache head remain. See the [module](self) for when to call what.
///
/// A value serves all cache heads: what it has to remember about one is in that head's [`Residents`].
pub trait EvictingPolicy {
    /// The method's name, as on command lines and in reports.
    fn name(&self) -> &'static str;

    /// How many of the newest tokens' queries (or weights) [`evict`](Self::evict) makes use of; fewer are accepted
    /// wherever there are fewer. 0: it needs none. `usize::MAX`: all there are.
    fn window(&self, phase: Phase) -> usize;

    /// Rows above the budget that decode steps may leave behind: a cache head needs room for budget, slack and the newest
    /// tokens. `usize::MAX`: nothing is evicted while decoding.
    fn slack(&self) -> usize {
        0
    }

    /// Takes note of a pass and drops all but `budget` rows, never the newest. Returns how many remain; which ones, and
    /// where they were, is in `residents`.
    ///
    /// `memory` needs [`Memory::scores_len`]`(2, n)` scores and [`scratch_len`](crate::select::scratch_len)`(budget)`
    /// entries (of the smaller of budget and n).
    ///
    /// # Errors
    /// [`Error::Range`] for a budget of 0, [`Error::Length`] or [`Error::Capacity`] if shapes or memory do not fit,
    /// [`Error::Missing`] if the method needs attention and the pass has none. After an error all rows remain.
    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        memory: &mut Memory<'_>,
    ) -> Result<usize>;
}

/// What every policy here checks.
pub(super) fn check(pass: &Pass<'_>, budget: usize, residents: &Residents<'_>) -> Result<()> {
    pass.validate(residents)?;
    if budget == 0 {
        return Err(Error::Range { what: "budget", problem: "the newest row always remains" });
    }
    Ok(())
}

/// [`check`], and the scores cut into three rows of n.
pub(super) fn prepare<'m>(
    pass: &Pass<'_>,
    budget: usize,
    residents: &Residents<'_>,
    memory: &'m mut Memory<'_>,
) -> Result<([&'m mut [f32]; 3], &'m mut [u64])> {
    check(pass, budget, residents)?;
    let n = residents.len();
    expect_capacity("memory.scores", memory.scores.len(), 3 * n)?;
    let (first, rest) = memory.scores.split_at_mut(n);
    let (second, rest) = rest.split_at_mut(n);
    Ok(([first, second, &mut rest[..n]], &mut *memory.entries))
}
