//! What the device runs.

use super::{Config, NOTHING};
use crate::length::tokens;
use crate::numbers::{half_at, number};
use crate::spans::UNITS;
use crate::team::{Exchange, Reduce, exchange, exchange_owner};
use cubecl::prelude::*;

/// Importances of a chunk of tokens of a list.
#[cube(launch_unchecked)]
pub(super) fn combine_kernel<S: Size>(
    scores: &[Vector<u32, S>],
    blocks: &[f32],
    length: &[u32],
    importance: &mut [f32],
    maxima: &mut [f32],
    most_tokens: u32,
    stride: u32,
    block_count: u32,
    #[comptime] config: Config,
) {
    let width = S::value();
    let (group, sketch_group, rows) = comptime!((config.group, config.sketch_group, config.spans.rows));
    let len = tokens(length, most_tokens, config.device_len);
    let head = CUBE_POS_Y as usize * group;
    let per_word = comptime!(config.per_word());
    let per_token = comptime!(sketch_group / per_word / width);
    // Of each token, vectors whose scores belong to the list; or, where these are no whole words, a word of each.
    let (reads, together) = comptime!(if config.whole_words() {
        (group / per_word / width, config.together() / per_word / width)
    } else {
        (group, config.together())
    });
    let first = CUBE_POS_X * comptime!(config.spans.chunk() as u32) + UNIT_POS;
    let mut read = Array::<Vector<u32, S>>::new(comptime!(rows * reads));
    #[unroll]
    for r in 0..rows {
        let t = min(first + comptime!(r as u32 * UNITS), len - 1) as usize;
        #[unroll]
        for v in 0..reads {
            let sketch = head / sketch_group + comptime!(v / together);
            let at = (sketch * stride as usize + t) * per_token;
            read[r * reads + v] = if comptime!(config.whole_words()) {
                scores[at + (head % sketch_group) / comptime!(per_word * width) + comptime!(v % together)]
            } else {
                scores[at + (head % sketch_group + comptime!(v % together)) / per_word]
            };
        }
    }
    // The numbers of the words.
    let mut number_of = Array::<f32>::new(comptime!(rows * group));
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for g in 0..group {
            number_of[r * group + g] = if comptime!(config.whole_words()) {
                let vector = read[comptime!(r * reads + g / (per_word * width))];
                let word = vector.extract(comptime!(g / per_word % width));
                number(word, comptime!(g % per_word), comptime!(config.format()), config.native_half)
            } else {
                let upper = (head % sketch_group + comptime!(g % together)) % 2 == 1;
                half_at(read[comptime!(r * reads + g)].extract(0usize), upper, config.native_half)
            };
        }
    }
    let mut out = Array::<f32>::new(rows);
    if comptime!(config.mean()) {
        let mut most = Array::<f32>::new(group);
        let mut share = Array::<f32>::new(group);
        find_softmax(blocks, &mut most, &mut share, head, block_count, config);
        #[unroll]
        for r in 0..rows {
            let mut sum = 0.0f32;
            #[unroll]
            for g in 0..group {
                sum += (number_of[r * group + g] - most[g]).exp() * share[g];
            }
            out[r] = sum;
        }
    } else {
        #[unroll]
        for r in 0..rows {
            out[r] = number_of[r];
        }
    }
    #[unroll]
    for r in 0..rows {
        let t = first + comptime!(r as u32 * UNITS);
        // What is no number loses against every number.
        let value = select(out[r] == out[r], out[r], NOTHING);
        out[r] = select(t < len, value, NOTHING);
        if t < len {
            importance[CUBE_POS_Y as usize * stride as usize + t as usize] = value;
        }
    }
    note_spans(&out, maxima, config);
}

/// The spans of importances that are there.
#[cube(launch_unchecked)]
pub(super) fn rank_kernel(values: &[f32], maxima: &mut [f32], len: u32, stride: u32, #[comptime] config: Config) {
    let rows = comptime!(config.spans.rows);
    let first = CUBE_POS_X * comptime!(config.spans.chunk() as u32) + UNIT_POS;
    let mut read = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        let t = first + comptime!(r as u32 * UNITS);
        let value = values[CUBE_POS_Y as usize * stride as usize + min(t, len - 1) as usize];
        read[r] = select(t < len && value == value, value, NOTHING);
    }
    note_spans(&read, maxima, config);
}

/// Writes the largest number of every span of the cube's chunk.
#[cube]
fn note_spans(numbers: &Array<f32>, maxima: &mut [f32], #[comptime] config: Config) {
    let (rows, lanes, of_chunk) = comptime!((config.spans.rows, config.spans.lanes, config.spans.of_chunk()));
    let mut high = Array::<f32>::new(1usize);
    high[0] = numbers[0];
    #[unroll]
    for r in 1..rows {
        high[0] = max(high[0], numbers[r]);
    }
    let first = (CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * of_chunk;
    if comptime!(config.plane > 0) {
        let shape = comptime!(Exchange { count: 1, lanes });
        let lane = UNIT_POS as usize % lanes;
        exchange(&mut high, lane, Reduce::Max, shape);
        if exchange_owner(lane, shape) {
            maxima[first + UNIT_POS as usize / lanes] = high[0];
        }
    } else {
        let mut all = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
        all[UNIT_POS as usize] = high[0];
        sync_cube();
        if UNIT_POS < comptime!(of_chunk as u32) {
            let mut largest = f32::new(NOTHING);
            for lane in 0..lanes {
                largest = max(largest, all[UNIT_POS as usize * lanes + lane]);
            }
            maxima[first + UNIT_POS as usize] = largest;
        }
    }
}

/// The softmax of each query head from `head` on, from what the scoring cubes found: the largest score, and one over the sum of
/// powers and the group.
#[cube]
fn find_softmax(
    blocks: &[f32],
    most: &mut Array<f32>,
    share: &mut Array<f32>,
    head: usize,
    block_count: u32,
    #[comptime] config: Config,
) {
    let group = comptime!(config.group);
    let mut found = Shared::<[f32]>::new_slice(comptime!(2 * group));
    if comptime!(config.plane > 0) {
        // A plane for each query head.
        let mut g = UNIT_POS / config.plane;
        while g < comptime!(group as u32) {
            let from = (head + g as usize) * block_count as usize;
            let mut top = f32::new(NOTHING);
            let mut i = UNIT_POS % config.plane;
            while i < block_count {
                top = max(top, blocks[(from + i as usize) * 2]);
                i += config.plane;
            }
            top = plane_max(top);
            let mut total = 0.0f32.runtime();
            let mut i = UNIT_POS % config.plane;
            while i < block_count {
                let at = (from + i as usize) * 2;
                total += blocks[at + 1] * (blocks[at] - top).exp();
                i += config.plane;
            }
            total = plane_sum(total);
            if (UNIT_POS % config.plane) == 0 {
                found[g as usize * 2] = top;
                found[g as usize * 2 + 1] = total;
            }
            g += comptime!(UNITS / config.plane);
        }
    } else if UNIT_POS < comptime!(group as u32) {
        let from = (head + UNIT_POS as usize) * block_count as usize;
        let mut top = f32::new(NOTHING);
        for i in 0..block_count {
            top = max(top, blocks[(from + i as usize) * 2]);
        }
        let mut total = 0.0f32.runtime();
        for i in 0..block_count {
            let at = (from + i as usize) * 2;
            total += blocks[at + 1] * (blocks[at] - top).exp();
        }
        found[UNIT_POS as usize * 2] = top;
        found[UNIT_POS as usize * 2 + 1] = total;
    }
    sync_cube();
    #[unroll]
    for g in 0..group {
        most[g] = found[g * 2];
        share[g] = 1.0f32 / (found[g * 2 + 1] * comptime!(group as f32));
    }
}
