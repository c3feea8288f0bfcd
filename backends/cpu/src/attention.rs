//! Softmax attention of one query group over rows of a cache: all of them (dense) or chosen ones (FAC).
//!
//! Rows are read in blocks with a running maximum (online softmax), each key and value once for the whole group.

use crate::exp::exp;
use crate::isa::{dispatch, dot, fma};
use crate::layer::LayerCache;
use fasa_core::Result;
use rayon::prelude::*;

/// Rows per block: scores of a block stay in registers and L1.
const BLOCK: usize = 32;

/// Fewest rows worth a thread of their own.
const ROWS_PER_TASK: usize = 1024;

/// Attention of a query group over part of the rows, before the division by the sum of weights.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    /// Largest scaled score per query, `[G]`.
    max: Vec<f32>,
    /// Sum of weights relative to that maximum, `[G]`.
    total: Vec<f32>,
    /// Weighted sum of values, `[G, dim]`.
    sums: Vec<f32>,
}

impl Partial {
    pub(crate) fn new(group: usize, dim: usize) -> Self {
        Self { max: vec![f32::NEG_INFINITY; group], total: vec![0.0; group], sums: vec![0.0; group * dim] }
    }

    /// Adds another part of the same rows' attention.
    fn merge(&mut self, other: &Partial) {
        let dim = self.sums.len() / self.max.len();
        for g in 0..self.max.len() {
            let max = self.max[g].max(other.max[g]);
            if max == f32::NEG_INFINITY {
                continue;
            }
            let (mine, theirs) = ((self.max[g] - max).exp(), (other.max[g] - max).exp());
            self.total[g] = self.total[g] * mine + other.total[g] * theirs;
            let row = g * dim..(g + 1) * dim;
            for (sum, add) in self.sums[row.clone()].iter_mut().zip(&other.sums[row]) {
                *sum = *sum * mine + add * theirs;
            }
            self.max[g] = max;
        }
    }

    /// Divides by the sum of weights; zeros if no row was read.
    pub(crate) fn finish(&self, out: &mut [f32]) {
        let dim = self.sums.len() / self.max.len();
        for ((out, sums), total) in out.chunks_exact_mut(dim).zip(self.sums.chunks_exact(dim)).zip(&self.total) {
            let inverse = if *total > 0.0 { 1.0 / total } else { 0.0 };
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * inverse);
        }
    }
}

/// The rows to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// From the first to before the second.
    Span(usize, usize),
    /// These.
    Chosen(&'a [u32]),
}

impl Which<'_> {
    fn len(&self) -> usize {
        match self {
            Which::Span(from, to) => to - from,
            Which::Chosen(positions) => positions.len(),
        }
    }

    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        match self {
            Which::Span(from, _) => from + i,
            Which::Chosen(positions) => positions[i] as usize,
        }
    }
}

dispatch! {
    /// Adds the attention of `queries` (`[G, dim]`) over the rows `which` of one KV head to `partial`.
    pub(crate) fn accumulate(queries: &[f32], keys: &[f32], values: &[f32], dim: usize, which: Which<'_>, partial: &mut Partial)
        = accumulate_kernel
}

#[inline(always)]
fn accumulate_kernel<const FMA: bool>(
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    dim: usize,
    which: Which<'_>,
    partial: &mut Partial,
) {
    let scale = 1.0 / (dim as f32).sqrt();
    let rows = which.len();
    let mut weights = [0.0f32; BLOCK];
    let mut start = 0;
    while start < rows {
        let count = BLOCK.min(rows - start);
        for (g, query) in queries.chunks_exact(dim).enumerate() {
            let mut max = f32::NEG_INFINITY;
            for (i, weight) in weights[..count].iter_mut().enumerate() {
                let t = which.at(start + i);
                *weight = dot::<FMA>(query, &keys[t * dim..(t + 1) * dim]) * scale;
                max = if *weight > max { *weight } else { max };
            }
            let sums = &mut partial.sums[g * dim..(g + 1) * dim];
            if max > partial.max[g] {
                let shrink = exp::<FMA>(partial.max[g] - max);
                sums.iter_mut().for_each(|s| *s *= shrink);
                partial.total[g] *= shrink;
                partial.max[g] = max;
            }
            let max = partial.max[g];
            let mut total = 0.0;
            for weight in &mut weights {
                *weight = exp::<FMA>(*weight - max);
            }
            for weight in &weights[..count] {
                total += weight;
            }
            partial.total[g] += total;
            for (i, weight) in weights[..count].iter().enumerate() {
                let t = which.at(start + i);
                for (sum, value) in sums.iter_mut().zip(&values[t * dim..(t + 1) * dim]) {
                    *sum = fma::<FMA>(*weight, *value, *sum);
                }
            }
        }
        start += count;
    }
}

/// Attention of one decode step over the whole cache of a layer.
///
/// `queries` and `out` are `[query_heads, dim]`. Query head h reads KV head h / G. Rows of one KV head are split over
/// threads when there are more threads than heads.
///
/// # Errors
/// [`fasa_core::Error::Length`] if the shapes disagree.
pub fn dense_decode(queries: &[f32], cache: &LayerCache<'_>, out: &mut [f32]) -> Result<()> {
    let group = cache.group(queries, out)?;
    let (dim, len, heads) = (cache.dim(), cache.len(), cache.kv_heads());
    let wanted = rayon::current_num_threads().div_ceil(heads);
    let pieces = wanted.min(len / ROWS_PER_TASK).max(1);
    let per_piece = len.div_ceil(pieces);
    let attend = |head: usize, from: usize| {
        let mut partial = Partial::new(group, dim);
        let queries = &queries[head * group * dim..(head + 1) * group * dim];
        let to = (from + per_piece).min(len);
        accumulate(queries, cache.keys(head), cache.values(head), dim, Which::Span(from, to), &mut partial);
        partial
    };
    let serial = heads * pieces == 1 || len * dim * heads < 16 * 1024;
    let finish = |(head, out): (usize, &mut [f32])| {
        let starts: Vec<usize> = (0..len).step_by(per_piece).collect();
        let parts: Vec<Partial> = match serial || starts.len() == 1 {
            true => starts.iter().map(|&from| attend(head, from)).collect(),
            false => starts.par_iter().map(|&from| attend(head, from)).collect(),
        };
        let mut parts = parts.into_iter();
        if let Some(mut whole) = parts.next() {
            parts.for_each(|part| whole.merge(&part));
            whole.finish(out);
        }
    };
    if serial {
        out.chunks_exact_mut(group * dim).enumerate().for_each(finish);
    } else {
        out.par_chunks_exact_mut(group * dim).enumerate().for_each(finish);
    }
    Ok(())
}
