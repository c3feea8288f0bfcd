//! Partial results of a list's cubes brought together, by all of them.

use super::mail::{Boxes, number_of, take, word_of};
use super::whole::Config;
use super::{DIM, Layout};
use crate::attend::rows::{Found, number_found};
use cubecl::prelude::*;

/// Tells what the cube's tokens give.
#[cube]
pub(super) fn tell_part(mail: &mut [Atomic<u32>], boxes: &Boxes, found: &Found, cube: u32, #[comptime] config: Config) {
    let (dim, group) = comptime!((config.dim, config.tip.group));
    let layout = comptime!(config.search.layout);
    let at = boxes.now + comptime!(layout.parts_at()) + cube as usize * comptime!(layout.part());
    let mut i = UNIT_POS as usize;
    while i < comptime!(group * dim) {
        let number = number_found(found, i, config.attend);
        mail[at + i].store(word_of(number.sum));
        if i % dim == 0 {
            let state = at + comptime!(group * DIM) + i / dim * 2;
            mail[state].store(word_of(number.top));
            mail[state + 1].store(word_of(number.all));
        }
        i += comptime!(config.search.units as usize);
    }
}

/// Writes this cube's share of the list's result, once every cube has told its part.
#[cube]
pub(super) fn finish(
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    out: &mut [f32],
    list: usize,
    cube: u32,
    #[comptime] config: Config,
) {
    let (dim, group, units) = comptime!((config.dim, config.tip.group, config.search.units as usize));
    let layout: Layout = comptime!(config.search.layout);
    let cubes = comptime!(layout.cubes);
    let own = comptime!((group * dim).div_ceil(layout.cubes));
    let from = cube as usize * own;
    let mut parts = Shared::<[f32]>::new_slice(comptime!(own * cubes));
    let mut states = Shared::<[f32]>::new_slice(comptime!(cubes * group * 2));
    let at = boxes.now + comptime!(layout.parts_at());
    let mut i = UNIT_POS as usize;
    while i < comptime!(own * cubes) {
        let (c, o) = (i / own, min(from + i % own, comptime!(group * dim - 1)));
        parts[i] = number_of(take(mail, at + c * comptime!(layout.part()) + o, &boxes.lost));
        i += units;
    }
    let mut i = UNIT_POS as usize;
    while i < comptime!(cubes * group * 2) {
        let (c, s) = (i / comptime!(2 * group), i % comptime!(2 * group));
        let place = at + c * comptime!(layout.part()) + comptime!(group * DIM) + s;
        states[i] = number_of(take(mail, place, &boxes.lost));
        i += units;
    }
    sync_cube();
    // A cube that gave up has no result.
    let lost = boxes.lost[0usize].load() != 0;
    let mut o = UNIT_POS as usize;
    while o < own {
        if from + o < comptime!(group * dim) {
            let g = (from + o) / dim;
            let mut top = states[g * 2];
            for c in 1..cubes {
                top = max(top, states[(c * group + g) * 2]);
            }
            let mut sum = 0.0f32.runtime();
            let mut total = 0.0f32.runtime();
            for c in 0..cubes {
                let share = (states[(c * group + g) * 2] - top).exp();
                sum += parts[c * own + o] * share;
                total += states[(c * group + g) * 2 + 1] * share;
            }
            out[list * comptime!(group * dim) + from + o] = select(lost, number_of(0u32.runtime()), sum / total);
        }
        o += units;
    }
}
