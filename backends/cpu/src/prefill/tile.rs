//! Tiles of registers: what the time goes to.

use super::step::KEYS;
use crate::exp::{exp, softcap};
use crate::simd::{LANES, Simd};

/// Dimensions of values that lie together; a multiple of every `R`.
pub(super) const TILE: usize = 8;

/// Most vectors per panel.
pub(super) const WIDEST: usize = 2;

/// One number of sixteen queries, on a cache line of its own: a load across two lines takes twice as long.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Vector(pub [f32; LANES]);

/// Which queries may read which rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask<F, const V: usize> {
    /// Tokens of the panel's queries.
    pub tokens: [F; V],
    /// Row j is read by tokens from `from + j` on,
    pub from: f32,
    /// and before `until + j`: infinite without a window.
    pub until: f32,
}

impl<F: Copy, const V: usize> Mask<F, V> {
    /// `x` in the lanes whose tokens read row j, 0 in the others.
    #[inline(always)]
    fn apply<S: Simd<F = F>>(&self, simd: S, v: usize, j: usize, x: F) -> F {
        let (token, j) = (self.tokens[v], j as f32);
        let seen = simd.where_ge(token, simd.splat(self.from + j), x);
        simd.where_ge(simd.splat(self.until + j - 1.0), token, seen)
    }

    /// 0 in the lanes whose tokens read row j, minus infinity in the others.
    #[inline(always)]
    fn hide<S: Simd<F = F>>(&self, simd: S, v: usize, j: usize) -> F {
        let (token, j, hidden) = (self.tokens[v], j as f32, simd.splat(f32::NEG_INFINITY));
        let early = simd.where_ge(simd.splat(self.from + j - 1.0), token, hidden);
        simd.add(early, simd.where_ge(token, simd.splat(self.until + j), hidden))
    }
}

/// The vectors at `from`. A loop and no closure: what is not inlined is compiled without the instruction set.
#[inline(always)]
pub(super) fn load<S: Simd, const V: usize>(simd: S, from: &[Vector; V]) -> [S::F; V] {
    let mut vectors = [simd.splat(0.0); V];
    for v in 0..V {
        vectors[v] = simd.load(&from[v].0);
    }
    vectors
}

#[inline(always)]
fn store<S: Simd, const V: usize>(simd: S, vectors: [S::F; V], to: &mut [Vector; V]) {
    for v in 0..V {
        simd.store(vectors[v], &mut to[v].0);
    }
}

/// Scores of `weights.len()` keys (`[KEYS, dim]`) for a panel of queries (`[dim, V]`), and the largest in each lane; `cap`
/// above 0 caps them.
#[inline(always)]
pub(super) fn scores<S: Simd, const V: usize, const R: usize, const MASKED: bool>(
    simd: S,
    queries: &[[Vector; V]],
    keys: &[f32],
    mask: Mask<S::F, V>,
    cap: f32,
    weights: &mut [[Vector; V]],
) -> [S::F; V] {
    let dim = queries.len();
    let hidden = simd.splat(f32::NEG_INFINITY);
    let mut largest = [hidden; V];
    for (t, weights) in weights.chunks_mut(R).enumerate() {
        // Rows past the end are those of an earlier step; their scores are not read.
        let mut rows: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            rows[r] = &keys[(t * R + r) * dim..][..dim];
        }
        let mut sums = [[simd.splat(0.0); V]; R];
        for (k, query) in queries.iter().enumerate() {
            let query = load(simd, query);
            for r in 0..R {
                let key = simd.splat(rows[r][k]);
                for v in 0..V {
                    sums[r][v] = simd.mul_add(query[v], key, sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let Some(to) = weights.get_mut(r) else { break };
            for v in 0..V {
                let mut score = sums[r][v];
                if cap > 0.0 {
                    score = softcap(simd, score, cap);
                }
                if MASKED {
                    // Chosen, not computed: the score of a row that is not there may be anything.
                    score = mask.apply(simd, v, t * R + r, score);
                    score = simd.add(score, mask.hide(simd, v, t * R + r));
                }
                largest[v] = simd.max(score, largest[v]);
                simd.store(score, &mut to[v].0);
            }
        }
    }
    largest
}

/// Scores to weights relative to the running maximum; returns what everything summed so far must be multiplied by.
#[inline(always)]
pub(super) fn to_weights<S: Simd, const V: usize>(
    simd: S,
    scores: &mut [[Vector; V]],
    largest: [S::F; V],
    max: &mut [Vector; V],
    total: &mut [Vector; V],
) -> [S::F; V] {
    let (mut new, mut shrink, mut sums) = (load(simd, max), [simd.splat(0.0); V], load(simd, total));
    for v in 0..V {
        let old = new[v];
        new[v] = simd.max(largest[v], old);
        // Of no score at all, minus infinity less itself, `exp` makes 0.
        shrink[v] = exp(simd, simd.sub(old, new[v]));
        sums[v] = simd.mul(sums[v], shrink[v]);
    }
    for score in scores {
        for v in 0..V {
            let weight = exp(simd, simd.sub(simd.load(&score[v].0), new[v]));
            sums[v] = simd.add(sums[v], weight);
            simd.store(weight, &mut score[v].0);
        }
    }
    store(simd, new, max);
    store(simd, sums, total);
    shrink
}

/// Multiplies `sums` (`[dim, V]`) by `shrink` and adds the weighted values (`[dim / TILE, KEYS, TILE]`).
///
/// With a mask, values that a query may not read count as 0; without, their weight of 0 does the same to finite ones.
#[inline(always)]
pub(super) fn add_values<S: Simd, const V: usize, const R: usize, const MASKED: bool>(
    simd: S,
    weights: &[[Vector; V]],
    values: &[[f32; TILE]],
    mask: Mask<S::F, V>,
    shrink: [S::F; V],
    sums: &mut [[Vector; V]],
) {
    for (values, sums) in values.chunks_exact(KEYS).zip(sums.chunks_exact_mut(TILE)) {
        let values = &values[..weights.len()];
        for (part, sums) in sums.chunks_exact_mut(R).enumerate() {
            let mut tile = [[simd.splat(0.0); V]; R];
            for r in 0..R {
                tile[r] = load(simd, &sums[r]);
                for v in 0..V {
                    tile[r][v] = simd.mul(tile[r][v], shrink[v]);
                }
            }
            for (j, (weight, value)) in weights.iter().zip(values).enumerate() {
                let weight = load(simd, weight);
                for r in 0..R {
                    let value = simd.splat(value[part * R + r]);
                    for v in 0..V {
                        let value = match MASKED {
                            true => mask.apply(simd, v, j, value),
                            false => value,
                        };
                        tile[r][v] = simd.mul_add(weight[v], value, tile[r][v]);
                    }
                }
            }
            for r in 0..R {
                store(simd, tile[r], &mut sums[r]);
            }
        }
    }
}
