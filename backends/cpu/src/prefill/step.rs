//! A few rows of the cache in single precision, as the tiles read them.

use super::tile::TILE;
use crate::simd::{Element, LANES, Simd};

/// Rows per step: as f32 they stay in the second cache while all panels use them, and a panel's weights in the first.
pub(crate) const KEYS: usize = 64;

/// Keys and values of up to [`KEYS`] rows of one head.
#[derive(Debug)]
pub(super) struct Step {
    /// `[KEYS, dim]`.
    pub keys: Vec<f32>,
    /// `[dim / TILE, KEYS, TILE]`: what one tile of registers reads lies together.
    pub values: Vec<[f32; TILE]>,
    /// Whether all values are, so that a weight of 0 makes them 0.
    pub finite: bool,
}

impl Step {
    pub(super) fn new(dim: usize) -> Self {
        let values = vec![[0.0; TILE]; dim.div_ceil(TILE) * KEYS];
        Self { keys: vec![0.0; KEYS * dim], values, finite: true }
    }

    /// Takes rows in; those behind them keep what they held.
    #[inline(always)]
    pub(super) fn load<S: Simd, E: Element>(&mut self, simd: S, keys: &[E], values: &[E], dim: usize) {
        self.load_keys(simd, keys);
        self.load_values(simd, values, dim);
    }

    #[inline(always)]
    fn load_keys<S: Simd, E: Element>(&mut self, simd: S, keys: &[E]) {
        let (from, from_rest) = keys.as_chunks::<LANES>();
        let (to, to_rest) = self.keys[..keys.len()].as_chunks_mut::<LANES>();
        for (to, from) in to.iter_mut().zip(from) {
            simd.store(E::load(simd, from), to);
        }
        if !from_rest.is_empty() {
            let mut lanes = [0.0; LANES];
            simd.store(E::load_rest(simd, from_rest), &mut lanes);
            to_rest.copy_from_slice(&lanes[..to_rest.len()]);
        }
    }

    #[inline(always)]
    fn load_values<S: Simd, E: Element>(&mut self, simd: S, values: &[E], dim: usize) {
        // Zero times a number is zero, unless the number is infinite or none.
        let (zero, mut check) = (simd.splat(0.0), simd.splat(0.0));
        for (j, row) in values.chunks_exact(dim).enumerate() {
            for (from, tiles) in row.chunks(LANES).zip(self.values.chunks_mut(LANES / TILE * KEYS)) {
                let numbers = match from.try_into() {
                    Ok(whole) => E::load(simd, whole),
                    Err(_) => E::load_rest(simd, from),
                };
                check = simd.mul_add(numbers, zero, check);
                let mut lanes = [0.0; LANES];
                simd.store(numbers, &mut lanes);
                for (tile, part) in tiles.chunks_exact_mut(KEYS).zip(lanes.as_chunks().0) {
                    tile[j] = *part;
                }
            }
        }
        self.finite = simd.sum(check) == 0.0;
    }
}
