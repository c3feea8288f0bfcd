//! Quest (arXiv 2406.10774): pages of tokens, judged by the most that any of their tokens could score.

use super::{CachePolicy, Memory, Selection, Step};
use crate::budget::Guarantees;
use crate::config::Scope;
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::importance::combine_rows;
use crate::rows::Rows;
use crate::select::Score;

/// Numbers that size the memory of a [`Quest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Tokens that the cache can hold.
    pub tokens: usize,
}

/// Tokens per page, as published.
pub const PAGE: usize = 16;
/// Pages that are always looked at, as published.
const LEAST_PAGES: usize = 3;

/// Selects whole pages of 16 tokens. A page's score is the upper bound of `q.k` over the box of its keys,
/// `Σ_c max(q_c min_c, q_c max_c)` (paper, algorithm 1); the best `max(3, budget / 16)` pages are kept.
///
/// Reads `2 d` numbers per page instead of `d` per token. It keeps those minima and maxima itself and extends them at every
/// call by the tokens that came since, so every step of a sequence must be shown, or at least follow from those shown: say
/// so by [`rewind`](CachePolicy::rewind) when a sequence ends or tokens are taken back.
///
/// Unlike the publication it never exceeds the budget: under 48 tokens the third page is cut, and where guaranteed tokens
/// (the current one always is) lie outside the best pages, the worst of these is. What is cut are a page's last tokens.
///
/// `F` and `U` are the memory: `&mut [f32]` and `&mut [u32]`, arrays or vectors of [`bounds_len`](Self::bounds_len) and
/// [`filled_len`](Self::filled_len) entries.
#[derive(Debug, Clone)]
pub struct Quest<F, U> {
    shape: CacheShape,
    scope: Scope,
    guarantees: Guarantees,
    bounds: F,
    filled: U,
}

impl Quest<(), ()> {
    /// Numbers of page bounds for a cache of `shape`: `[layers, kv_heads, pages, 2, head_dim]`.
    pub const fn bounds_len(shape: CacheShape) -> usize {
        shape.layers * shape.kv_heads * shape.tokens.div_ceil(PAGE) * 2 * shape.head_dim
    }

    /// Counters for a cache of `shape`: `[layers, kv_heads]`.
    pub const fn filled_len(shape: CacheShape) -> usize {
        shape.layers * shape.kv_heads
    }
}

#[cfg(feature = "alloc")]
impl Quest<alloc::vec::Vec<f32>, alloc::vec::Vec<u32>> {
    /// Quest with memory of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn owned(shape: CacheShape) -> Result<Self> {
        use alloc::vec;
        Self::new(shape, vec![0.0; Quest::bounds_len(shape)], vec![0; Quest::filled_len(shape)])
    }
}

impl<F: AsRef<[f32]> + AsMut<[f32]>, U: AsRef<[u32]> + AsMut<[u32]>> Quest<F, U> {
    /// Quest for a cache of `shape`, one set of tokens per query head as published.
    ///
    /// # Errors
    /// [`Error::Range`] for a shape with a zero, [`Error::Length`] if the memory is of another size.
    pub fn new(shape: CacheShape, bounds: F, mut filled: U) -> Result<Self> {
        if [shape.layers, shape.kv_heads, shape.head_dim, shape.tokens].contains(&0) {
            return Err(Error::Range { what: "shape", problem: "a cache has layers, heads, dimensions and tokens" });
        }
        expect_length("bounds", bounds.as_ref().len(), Quest::bounds_len(shape))?;
        expect_length("filled", filled.as_ref().len(), Quest::filled_len(shape))?;
        filled.as_mut().fill(0);
        Ok(Self { shape, scope: Scope::QueryHead, guarantees: Guarantees::CURRENT, bounds, filled })
    }

    /// One set of pages per KV head (by the mean over its query heads of the softmax of the bounds) or per query head.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Keeps these tokens whatever their page, within the budget.
    #[must_use]
    pub fn with_guarantees(self, guarantees: Guarantees) -> Self {
        Self { guarantees, ..self }
    }

    /// Extends the bounds by the keys that came since the last call, and returns those of the head, `[pages, 2, d]`.
    fn update(&mut self, step: &Step<'_>) -> Result<&[f32]> {
        let CacheShape { layers, kv_heads, head_dim, tokens } = self.shape;
        let n = step.keys.len();
        if step.layer >= layers || step.kv_head >= kv_heads {
            return Err(Error::Range { what: "step", problem: "the shape has fewer layers or heads" });
        }
        expect_length("keys", step.keys.dim(), head_dim)?;
        expect_capacity("shape.tokens", tokens, n)?;
        let head = step.layer * kv_heads + step.kv_head;
        let filled = &mut self.filled.as_mut()[head];
        let page_len = 2 * head_dim;
        let of_head = tokens.div_ceil(PAGE) * page_len;
        let bounds = &mut self.bounds.as_mut()[head * of_head..(head + 1) * of_head];
        if *filled as usize > n {
            *filled = first_of_page(n);
        }
        for t in *filled as usize..n {
            let key = step.keys.row(t);
            let (low, high) = bounds[t / PAGE * page_len..][..page_len].split_at_mut(head_dim);
            if t.is_multiple_of(PAGE) {
                low.copy_from_slice(key);
                high.copy_from_slice(key);
                continue;
            }
            for ((low, high), k) in low.iter_mut().zip(high).zip(key) {
                (*low, *high) = (low.min(*k), high.max(*k));
            }
        }
        *filled = n as u32;
        Ok(&bounds[..n.div_ceil(PAGE) * page_len])
    }
}

/// The first token of the page that holds the last of `tokens` tokens, which has to be built again after a rewind.
fn first_of_page(tokens: usize) -> u32 {
    (tokens - tokens % PAGE) as u32
}

/// Upper bounds of `query.k` over pages of keys, `[pages]`: what [`Quest`] ranks pages by. `bounds` has two rows per page,
/// the smallest and the largest of each key dimension. Time O(pages d).
///
/// # Errors
/// [`Error::Length`] if the shapes disagree.
pub fn page_scores(query: &[f32], bounds: Rows<'_>, out: &mut [f32]) -> Result<()> {
    expect_length("bounds", bounds.dim(), query.len())?;
    expect_length("out", 2 * out.len(), bounds.len())?;
    for (page, score) in out.iter_mut().enumerate() {
        let (low, high) = (bounds.row(2 * page), bounds.row(2 * page + 1));
        let mut sums = [0.0f32; 8];
        for (c, ((q, low), high)) in query.iter().zip(low).zip(high).enumerate() {
            sums[c % 8] += (q * low).max(q * high);
        }
        *score = sums.iter().sum();
    }
    Ok(())
}

/// Pages that are kept, of pages scored `scores`.
struct Best<'a> {
    scores: &'a [f32],
    count: usize,
}

impl Best<'_> {
    /// Whether `page` is among them: fewer than `count` pages are better, ties going to the lower page.
    fn contains(&self, page: usize) -> bool {
        let this = self.scores[page].entry(page as u32);
        self.scores.iter().zip(0..).filter(|(score, other)| score.entry(*other) > this).take(self.count).count()
            < self.count
    }

    /// Tokens of the best pages and guaranteed tokens beside them, of a context of `n`.
    fn tokens(&self, n: usize, forced: impl Iterator<Item = usize>) -> usize {
        let (pages, mut tokens) = (self.scores.len(), self.count * PAGE);
        if self.contains(pages - 1) {
            tokens -= pages * PAGE - n;
        }
        let mut last = (usize::MAX, false);
        for t in forced {
            if t / PAGE != last.0 {
                last = (t / PAGE, self.contains(t / PAGE));
            }
            tokens += usize::from(!last.1);
        }
        tokens
    }
}

impl<F: AsRef<[f32]> + AsMut<[f32]>, U: AsRef<[u32]> + AsMut<[u32]>> CachePolicy for Quest<F, U> {
    fn name(&self) -> &'static str {
        "quest"
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn select(
        &mut self,
        step: &Step<'_>,
        budget: usize,
        memory: &mut Memory<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<()> {
        step.validate()?;
        let (scope, guarantees, dim) = (self.scope, self.guarantees, self.shape.head_dim);
        let (group, n) = (step.queries.len(), step.keys.len());
        let (sets, budget) = (scope.rows(group, 1), budget.min(n));
        selection.expect(scope, group, budget)?;
        expect_capacity("memory.scores", memory.scores.len(), Memory::scores_len(sets, n))?;
        let bounds = Rows::contiguous(self.update(step)?, dim)?;
        if budget == n {
            return (0..sets).try_for_each(|s| selection.fill_all(s, n));
        }
        let pages = n.div_ceil(PAGE);
        // Less than everything is kept, so n >= 2: page scores, scratch and one row of token scores fit.
        let (page_rows, rest) = memory.scores.split_at_mut(sets * pages);
        let (scratch, rest) = rest.split_at_mut(pages);
        let row = &mut rest[..n];
        combine_rows([group, pages, dim], scope, scratch, page_rows, &mut |g, out| {
            page_scores(step.queries.row(g), bounds, out)
        })?;
        let (sinks, recent_from) = guarantees.forced(n, budget);
        for (s, scores) in page_rows.chunks_exact(pages).enumerate() {
            let best = Best { scores, count: (budget / PAGE).max(LEAST_PAGES).min(pages) };
            let kept = best.tokens(n, (0..sinks).chain(recent_from..n)).min(budget);
            row.chunks_mut(PAGE).zip(scores).for_each(|(tokens, score)| tokens.fill(*score));
            selection.fill(s, |out| guarantees.pick(row, kept, memory.entries, out))?;
        }
        Ok(())
    }

    fn rewind(&mut self, tokens: usize) {
        for filled in self.filled.as_mut() {
            if *filled as usize > tokens {
                *filled = first_of_page(tokens);
            }
        }
    }
}
