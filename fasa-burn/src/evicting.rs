//! Methods that evict, run as selections: the cache keeps every row, the policy's book says which it would still have.
//!
//! So that many methods can share one prefill, nothing is really dropped. A step attends to exactly the rows that the
//! policy would have kept in a cache of its own; a row that it once dropped never comes back.

use crate::error::Result;
use crate::trace::Trace;
use fasa_core::policy::{Attention, CachePolicy, EvictingPolicy, Memory, Pass, Phase, ResidentVec, Selection, Step};
use fasa_core::select::scratch_len;
use fasa_core::{Error, Rows, Scope};
use std::collections::VecDeque;
use std::ops::Range;

/// An evicting policy over a cache that is only read.
///
/// With [`Scope::KvHead`] the query heads of a group share the rows that remain, with [`Scope::QueryHead`] each keeps its
/// own, as code does that repeats the KV heads before it evicts.
#[derive(Debug, Clone)]
pub struct Evicting<P> {
    policy: P,
    scope: Scope,
    dense_layers: usize,
    /// Per layer; empty for dense ones.
    heads: Vec<Vec<CacheHead>>,
}

/// The book of one cache head, and the latest queries of its query heads.
#[derive(Debug, Clone)]
struct CacheHead {
    book: ResidentVec,
    /// Per query head, oldest token first.
    queries: Vec<VecDeque<Vec<f32>>>,
}

impl<P: EvictingPolicy + Clone> Evicting<P> {
    /// Queries of how many of a prompt's last tokens [`read`](Self::read) needs.
    pub fn window(policy: &P) -> usize {
        policy.window(Phase::Prefill).max(policy.window(Phase::Decode))
    }

    /// Lets the policy look at a prompt and drop nothing yet. The first `dense_layers` layers are left out.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if the policy fails, or the trace lacks queries.
    pub fn read(
        policy: &P,
        scope: Scope,
        kv_heads: usize,
        group: usize,
        dense_layers: usize,
        trace: &Trace,
    ) -> Result<Self> {
        let mut this = Self { policy: policy.clone(), scope, dense_layers, heads: Vec::new() };
        let remembered = policy.window(Phase::Decode);
        for (index, layer) in trace.layers().iter().enumerate() {
            let mut heads = Vec::new();
            let cache_heads = if index < dense_layers { 0 } else { scope.rows(kv_heads * group, kv_heads) };
            for head in 0..cache_heads {
                let mut book = ResidentVec::with_capacity(layer.tokens());
                book.view().append(layer.tokens())?;
                let queries = this
                    .query_heads(head, group)
                    .map(|q| Ok(layer.last_queries(q, remembered)?.iter().map(<[f32]>::to_vec).collect()));
                heads.push(CacheHead { queries: queries.collect::<Result<_>>()?, book });
            }
            this.heads.push(heads);
        }
        this.evict_prompt(group, trace, usize::MAX)?;
        Ok(this)
    }

    /// The same within a budget: what is left of the prompt beside the next token. The policy was shown `trace` before.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if the policy fails, or the budget is below 2: the next token and one row of the prompt.
    pub fn within(&self, budget: usize, group: usize, trace: &Trace) -> Result<Self> {
        let mut this = self.clone();
        this.evict_prompt(group, trace, before_next(budget)?)?;
        Ok(this)
    }

    /// Query heads of a layer that read cache head `head`.
    fn query_heads(&self, head: usize, group: usize) -> Range<usize> {
        match self.scope {
            Scope::KvHead => head * group..(head + 1) * group,
            Scope::QueryHead => head..head + 1,
        }
    }

    fn evict_prompt(&mut self, group: usize, trace: &Trace, budget: usize) -> Result<()> {
        let window = self.policy.window(Phase::Prefill);
        for (index, layer) in trace.layers().iter().enumerate() {
            for head in 0..self.heads[index].len() {
                let query_heads = self.query_heads(head, group);
                let observed =
                    query_heads.clone().map(|q| layer.last_queries(q, window)).collect::<Result<Vec<_>>>()?;
                let keys = layer.keys(query_heads.start / group)?;
                let attention = if window == 0 { Attention::None } else { Attention::Queries(&observed) };
                let pass = Pass::new(Phase::Prefill, keys, attention).at(index, head);
                evict(&mut self.policy, &pass, budget, &mut self.heads[index][head].book)?;
            }
        }
        Ok(())
    }
}

/// Rows that may be there before a step: its own token joins them.
fn before_next(budget: usize) -> fasa_core::Result<usize> {
    match budget {
        0 | 1 => Err(Error::Range { what: "budget", problem: "an evicting method keeps a row beside the new token's" }),
        budget => Ok(budget - 1),
    }
}

fn evict(
    policy: &mut impl EvictingPolicy,
    pass: &Pass<'_>,
    budget: usize,
    book: &mut ResidentVec,
) -> fasa_core::Result<usize> {
    let mut book = book.view();
    let n = book.len();
    let (mut scores, mut entries) = (vec![0.0; Memory::scores_len(2, n)], vec![0; scratch_len(budget.min(n))]);
    policy.evict(pass, budget, &mut book, &mut Memory { scores: &mut scores, entries: &mut entries })
}

impl<P: EvictingPolicy + Clone> CachePolicy for Evicting<P> {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    /// Steps come in order, one token after the other.
    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        _memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> fasa_core::Result<()> {
        step.validate()?;
        let group = step.queries.len();
        let sets = self.scope.rows(group, 1);
        let window = self.policy.window(Phase::Decode);
        let missing = Error::Range { what: "layer", problem: "the prompt was read without it" };
        let heads = self.heads.get_mut(step.layer).ok_or(missing)?;
        if step.layer < self.dense_layers || heads.len() < (step.kv_head + 1) * sets {
            return Err(missing);
        }
        for set in 0..sets {
            let head = &mut heads[step.kv_head * sets + set];
            let rows = head.book.view().len() + 1;
            head.book.reserve(rows);
            let mut book = head.book.view();
            if book.seen() + 1 != step.keys.len() {
                return Err(Error::Range {
                    what: "step",
                    problem: "steps of an evicting method come one after the other",
                });
            }
            book.append(1)?;
            let positions: Vec<u32> = book.positions().collect();
            selection.fill(set, |out| {
                let (want, got) = (positions.len(), out.len());
                let slots = out.get_mut(..want).ok_or(Error::Capacity { what: "selection", want, got })?;
                slots.copy_from_slice(&positions);
                Ok(want)
            })?;
            let query_heads = if self.scope == Scope::KvHead { 0..group } else { set..set + 1 };
            for (recent, g) in head.queries.iter_mut().zip(query_heads) {
                recent.push_back(step.queries.row(g).to_vec());
                while recent.len() > window.max(1) {
                    recent.pop_front();
                }
            }
            if self.policy.slack() == usize::MAX {
                continue; // nothing is evicted while decoding
            }
            let dim = step.keys.dim();
            let keys: Vec<f32> = positions.iter().flat_map(|p| step.keys.row(*p as usize)).copied().collect();
            let queries: Vec<Vec<f32>> = head.queries.iter().map(|q| q.iter().flatten().copied().collect()).collect();
            let observed = queries.iter().map(|q| Rows::contiguous(q, dim)).collect::<fasa_core::Result<Vec<_>>>()?;
            let attention = if window == 0 { Attention::None } else { Attention::Queries(&observed) };
            let pass = Pass::new(Phase::Decode, Rows::contiguous(&keys, dim)?, attention).at(step.layer, set);
            evict(&mut self.policy, &pass, before_next(budget)?, &mut head.book)?;
        }
        Ok(())
    }
}
