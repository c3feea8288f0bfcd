//! What the device runs.

use super::rows::{attend_rows, number_found};
use super::{Config, NOTHING};
use crate::length::tokens;
use cubecl::prelude::*;

/// Attention to a cube's share of the rows: whole, or its part with the state that [`merge_kernel`] needs.
#[cube(launch_unchecked)]
pub(super) fn attend_kernel<N: Size>(
    queries: &[f32],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    positions: &[u32],
    out: &mut [f32],
    states: &mut [f32],
    length: &[u32],
    capacity: u32,
    most_rows: u32,
    per_cube: u32,
    lists: u32,
    scale: f32,
    #[comptime] config: Config,
) {
    let list = CUBE_POS_Y as usize;
    let count = tokens(length, most_rows, config.device_len);
    let stop = min(count, (CUBE_POS_X + 1) * per_cube);
    let at = list * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let (begin, head) = (CUBE_POS_X * per_cube, list / lists as usize);
    let (dim, group) = comptime!((config.dim, config.group));
    let own = Shared::<[u32]>::new_slice(1usize);
    let found = attend_rows::<N>(
        queries, keys, values, positions, &own, list, head, begin, stop, count, capacity, scale, config,
    );
    let units = comptime!(config.team * config.teams);
    let mut i = UNIT_POS as usize;
    while i < comptime!(group * dim) {
        let g = i / dim;
        let number = number_found(&found, i, config);
        if comptime!(config.whole) {
            out[list * comptime!(group * dim) + i] = number.sum / number.all;
        } else {
            out[at * comptime!(group * dim) + i] = number.sum;
            if i % dim == 0 {
                states[(at * group + g) * 2] = number.top;
                states[(at * group + g) * 2 + 1] = number.all;
            }
        }
        i += units;
    }
}

/// Brings the parts of a query head together. A few parts are read at once.
#[cube(launch_unchecked)]
pub(super) fn merge_kernel(
    partials: &[f32],
    states: &[f32],
    out: &mut [f32],
    splits: u32,
    dim: u32,
    group: u32,
    #[comptime] few: u32,
) {
    let (list, g) = (CUBE_POS_X / group, CUBE_POS_X % group);
    let c = UNIT_POS;
    if c < dim {
        let mut sum = 0.0f32.runtime();
        let mut total = 0.0f32.runtime();
        let mut top = NOTHING.runtime();
        if comptime!(few > 0) {
            let mut tops = Array::<f32>::new(comptime!(few as usize));
            let mut totals = Array::<f32>::new(comptime!(few as usize));
            let mut parts = Array::<f32>::new(comptime!(few as usize));
            #[unroll]
            for s in 0..few {
                let at = ((list * splits + s) * group + g) as usize;
                tops[s as usize] = states[at * 2];
                totals[s as usize] = states[at * 2 + 1];
                parts[s as usize] = partials[at * dim as usize + c as usize];
            }
            #[unroll]
            for s in 0..few {
                top = max(top, tops[s as usize]);
            }
            #[unroll]
            for s in 0..few {
                let share = (tops[s as usize] - top).exp();
                sum += parts[s as usize] * share;
                total += totals[s as usize] * share;
            }
        } else {
            for s in 0..splits {
                top = max(top, states[(((list * splits + s) * group + g) * 2) as usize]);
            }
            for s in 0..splits {
                let at = ((list * splits + s) * group + g) as usize;
                let share = (states[at * 2] - top).exp();
                sum += partials[at * dim as usize + c as usize] * share;
                total += states[at * 2 + 1] * share;
            }
        }
        out[(CUBE_POS_X * dim + c) as usize] = sum / total;
    }
}
