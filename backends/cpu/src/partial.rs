//! Attention over a part of the rows, before the division by the sum of weights.

use crate::simd::LANES;

/// Attention of `G` queries over some rows; parts of the same queries' attention add up.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    /// Largest score per query, `[G]`, in powers of two.
    pub max: Vec<f32>,
    /// Sum of weights relative to that maximum, `[G]`.
    pub total: Vec<f32>,
    /// Weighted sum of values, `[G, dim]`, each row padded to whole vectors.
    pub sums: Vec<[f32; LANES]>,
    dim: usize,
}

impl Partial {
    pub(crate) fn new(group: usize, dim: usize) -> Self {
        let sums = vec![[0.0; LANES]; group * dim.div_ceil(LANES)];
        Self { max: vec![f32::NEG_INFINITY; group], total: vec![0.0; group], sums, dim }
    }

    /// Vectors per query.
    #[inline(always)]
    pub(crate) fn blocks(&self) -> usize {
        self.dim.div_ceil(LANES)
    }

    /// Adds another part of the same queries' attention.
    pub(crate) fn merge(&mut self, other: &Partial) {
        let blocks = self.blocks();
        for g in 0..self.max.len() {
            let max = self.max[g].max(other.max[g]);
            if max == f32::NEG_INFINITY {
                continue;
            }
            let (mine, theirs) = ((self.max[g] - max).exp2(), (other.max[g] - max).exp2());
            self.total[g] = self.total[g] * mine + other.total[g] * theirs;
            let row = g * blocks..(g + 1) * blocks;
            let others = other.sums[row.clone()].as_flattened();
            for (sum, add) in self.sums[row].as_flattened_mut().iter_mut().zip(others) {
                *sum = *sum * mine + add * theirs;
            }
            self.max[g] = max;
        }
    }

    /// Divides by the sum of weights; zeros if no row was read. `out` is `[G, dim]`.
    pub(crate) fn finish(&self, out: &mut [f32]) {
        let rows = out.chunks_exact_mut(self.dim).zip(self.sums.chunks_exact(self.blocks()));
        for ((out, sums), total) in rows.zip(&self.total) {
            let inverse = if *total > 0.0 { 1.0 / total } else { 0.0 };
            out.iter_mut().zip(sums.as_flattened()).for_each(|(o, s)| *o = s * inverse);
        }
    }
}
