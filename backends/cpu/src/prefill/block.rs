//! One block of queries of one KV head against all rows that they attend to.
//!
//! Everything is kept transposed: a vector holds one number of sixteen queries. Then scores need no sums across lanes,
//! the softmax is lane by lane, and keys and values are read one number at a time, as they lie in the cache. The block's
//! queries are cut into panels of V vectors, what one tile of registers is wide.

use super::step::{KEYS, Step};
use super::tile::{self, Mask, TILE, Vector};
use crate::isa::{Isa, dispatch};
use crate::simd::{Element, LANES, Simd};
use crate::source::Shape;

/// Queries of one KV head, token by token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queries<'a> {
    /// From the first query on, with what lies between and behind.
    pub rows: &'a [f32],
    /// Numbers from one token's queries to the next one's.
    pub per_token: usize,
    /// Query heads.
    pub group: usize,
    /// Numbers per query.
    pub dim: usize,
}

/// Memory of one thread.
#[derive(Debug)]
pub(crate) struct Scratch {
    step: Step,
    /// Scores of a step and a panel, then weights: `[KEYS, V]`.
    weights: Vec<Vector>,
    /// `[panels, dim, V]`, times the softmax scale.
    queries: Vec<Vector>,
    /// Weighted sums of values, `[panels, dim, V]`, `dim` padded to whole tiles.
    sums: Vec<Vector>,
    /// Token of every query, counted from the block's first, `[panels, V]`.
    tokens: Vec<Vector>,
    /// Largest score so far, `[panels, V]`.
    max: Vec<Vector>,
    /// Sum of weights relative to that maximum, `[panels, V]`.
    total: Vec<Vector>,
}

impl Scratch {
    /// For blocks of up to `rows` queries.
    pub(crate) fn new(dim: usize, rows: usize) -> Self {
        let vectors = rows.div_ceil(LANES).next_multiple_of(tile::WIDEST);
        let zeros = |n: usize| vec![Vector::default(); n];
        let tiles = dim.div_ceil(TILE);
        Self {
            step: Step::new(dim),
            weights: zeros(KEYS * tile::WIDEST),
            queries: zeros(vectors * dim),
            sums: zeros(vectors * tiles * TILE),
            tokens: zeros(vectors),
            max: zeros(vectors),
            total: zeros(vectors),
        }
    }
}

/// Rows of the cache that a block may read, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// The row of the block's first token.
    first: usize,
    /// Rows that a token attends to at most.
    window: usize,
    /// What scores are capped at; 0 for not at all.
    softcap: f32,
}

impl Span {
    /// For a block whose first token is row `first` of a cache.
    pub(crate) fn new(first: usize, cache: Shape) -> Self {
        Self { first, window: cache.window, softcap: cache.softcap }
    }
}

/// Rows of one head, a few at a time.
pub(crate) trait Rows<E> {
    /// Keys and values of `count` rows, at most [`KEYS`], from `from` on, `[count, dim]` each; `None` if they cannot be had,
    /// which ends the block.
    fn rows(&mut self, from: usize, count: usize) -> Option<(&[E], &[E])>;
}

/// Rows in memory.
pub(crate) struct InMemory<'a, E> {
    /// `[len, dim]`.
    pub keys: &'a [E],
    /// `[len, dim]`.
    pub values: &'a [E],
    pub dim: usize,
}

impl<E> Rows<E> for InMemory<'_, E> {
    fn rows(&mut self, from: usize, count: usize) -> Option<(&[E], &[E])> {
        let rows = from * self.dim..(from + count) * self.dim;
        Some((&self.keys[rows.clone()], &self.values[rows]))
    }
}

/// Attention of a block; `out` holds `[group, dim]` for each of its tokens.
pub(crate) fn attend<E: Element>(
    isa: Isa,
    queries: Queries<'_>,
    rows: &mut dyn Rows<E>,
    span: Span,
    out: &mut [&mut [f32]],
    scratch: &mut Scratch,
) {
    dispatch!(@for isa, [E: Element] (
        queries: Queries<'_>, rows: &mut dyn Rows<E>, span: Span, out: &mut [&mut [f32]], scratch: &mut Scratch
    ) [] attend_kernel)
}

#[inline(always)]
fn attend_kernel<S: Simd, E: Element>(
    simd: S,
    queries: Queries<'_>,
    rows: &mut dyn Rows<E>,
    span: Span,
    out: &mut [&mut [f32]],
    scratch: &mut Scratch,
) {
    // Sixteen accumulators where a vector is one register; elsewhere few vectors fill all registers there are.
    let wide = S::WIDE;
    if wide && out.len() * queries.group > LANES {
        attend_panels::<S, E, 2, 8>(simd, queries, rows, span, out, scratch);
    } else if wide {
        attend_panels::<S, E, 1, 8>(simd, queries, rows, span, out, scratch);
    } else {
        attend_panels::<S, E, 1, 4>(simd, queries, rows, span, out, scratch);
    }
}

/// With `V` vectors per panel and tiles of `R` rows or dimensions.
#[inline(always)]
fn attend_panels<S: Simd, E: Element, const V: usize, const R: usize>(
    simd: S,
    queries: Queries<'_>,
    rows: &mut dyn Rows<E>,
    span: Span,
    out: &mut [&mut [f32]],
    scratch: &mut Scratch,
) {
    let Queries { group, dim, .. } = queries;
    let (count_queries, per_panel) = (out.len() * group, V * LANES);
    let panels = count_queries.div_ceil(per_panel);
    scratch.begin(queries, count_queries, V);
    let padded = dim.next_multiple_of(TILE);
    let Span { first, window, softcap } = span;
    let end = first + out.len();
    // The first token's window begins here, and no other's before it. From a whole step on, so that the steps of all blocks
    // are the same ones.
    let begin = (first + 1).saturating_sub(window) / KEYS * KEYS;
    for start in (begin..end).step_by(KEYS) {
        let count = KEYS.min(end - start);
        let Some((keys, values)) = rows.rows(start, count) else { return };
        scratch.step.load(simd, keys, values, dim);
        for p in 0..panels {
            let (first_row, last_row) = (p * per_panel, ((p + 1) * per_panel).min(count_queries) - 1);
            // What the panel's first and last query attend to ends before these rows.
            let (first_end, last_end) = (first + first_row / group + 1, first + last_row / group + 1);
            if last_end <= start || start + count <= first_end.saturating_sub(window) {
                continue;
            }
            let count = count.min(last_end - start);
            let weights = &mut scratch.weights.as_chunks_mut().0[..count];
            let queries = &scratch.queries.as_chunks().0[p * dim..][..dim];
            let sums = &mut scratch.sums.as_chunks_mut().0[p * padded..][..padded];
            let (max, total) = (&mut scratch.max.as_chunks_mut().0[p], &mut scratch.total.as_chunks_mut().0[p]);
            // The step's first row is for the block's tokens from `start - first` on.
            let tokens = tile::load(simd, &scratch.tokens.as_chunks().0[p]);
            let from = (start as isize - first as isize) as f32;
            let until = if window >= end { f32::INFINITY } else { from + window as f32 };
            let mask: Mask<_, V> = Mask { tokens, from, until };
            let step = &scratch.step;
            let hides = first_end < start + count || last_end.saturating_sub(window) > start;
            let largest = match hides {
                true => tile::scores::<S, V, R, true>(simd, queries, &step.keys, mask, softcap, weights),
                false => tile::scores::<S, V, R, false>(simd, queries, &step.keys, mask, softcap, weights),
            };
            let shrink = tile::to_weights(simd, weights, largest, max, total);
            match hides && !step.finite {
                true => tile::add_values::<S, V, R, true>(simd, weights, &step.values, mask, shrink, sums),
                false => tile::add_values::<S, V, R, false>(simd, weights, &step.values, mask, shrink, sums),
            }
        }
    }
    scratch.finish(dim, V, out);
}

impl Scratch {
    /// Takes the queries in, and forgets what was before.
    fn begin(&mut self, queries: Queries<'_>, rows: usize, v: usize) {
        let Queries { rows: numbers, per_token, group, dim } = queries;
        let scale = 1.0 / (dim as f32).sqrt();
        for row in 0..rows.next_multiple_of(v * LANES) {
            let (panel, vector, lane) = (row / (v * LANES), row / LANES % v, row % LANES);
            let to = self.queries[panel * dim * v..][..dim * v].iter_mut().skip(vector).step_by(v);
            // Lanes without a query compute something that nobody reads.
            let row = row.min(rows - 1);
            let from = &numbers[row / group * per_token + row % group * dim..][..dim];
            to.zip(from).for_each(|(to, from)| to.0[lane] = from * scale);
            self.tokens[panel * v + vector].0[lane] = (row / group) as f32;
        }
        self.sums.fill(Vector::default());
        self.total.fill(Vector::default());
        self.max.fill(Vector([f32::NEG_INFINITY; LANES]));
    }

    /// Divides by the sums of weights; zeros where no score was a number.
    fn finish(&self, dim: usize, v: usize, out: &mut [&mut [f32]]) {
        let padded = dim.next_multiple_of(TILE);
        for (row, out) in out.iter_mut().flat_map(|out| out.chunks_exact_mut(dim)).enumerate() {
            let (vector, lane) = (row / LANES, row % LANES);
            let total = self.total[vector].0[lane];
            let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
            let sums = self.sums[vector / v * padded * v..].iter().skip(vector % v).step_by(v);
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = s.0[lane] * inverse);
        }
    }
}
