//! What the device runs.

use super::{Config, NOTHING};
use crate::length::tokens;
use crate::numbers::{half_at, number};
use crate::spans::UNITS;
use crate::team::{Exchange, Reduce, exchange, exchange_owner};
use cubecl::prelude::*;

/// Importances of chunks of tokens of a list: cubes take them in turn, and read the scores of the next while they combine those
/// of one.
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
    chunks: u32,
    #[comptime] config: Config,
) {
    let width = S::value();
    let (group, rows, reads) = comptime!((config.group, config.spans.rows, config.reads(width)));
    let len = tokens(length, most_tokens, config.device_len);
    let head = CUBE_POS_Y as usize * group;
    let mut chunk = CUBE_POS_X;
    let mut next = Array::<Vector<u32, S>>::new(comptime!(rows * reads));
    let mut now = Array::<Vector<u32, S>>::new(comptime!(rows * reads));
    read_scores::<S>(&mut next, scores, chunk, len, stride, head, config);
    let mut most = Array::<f32>::new(group);
    let mut share = Array::<f32>::new(group);
    if comptime!(config.mean()) {
        find_softmax(blocks, &mut most, &mut share, head, block_count, config);
    }
    while chunk < chunks {
        #[unroll]
        for i in 0..comptime!(rows * reads) {
            now[i] = next[i];
        }
        let after = chunk + CUBE_COUNT_X;
        if after < chunks {
            read_scores::<S>(&mut next, scores, after, len, stride, head, config);
        }
        let mut out = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            if comptime!(config.mean()) {
                let mut sum = 0.0f32.runtime();
                #[unroll]
                for g in 0..group {
                    sum += (score::<S>(&now, r, g, head, config) - most[g]).exp() * share[g];
                }
                out[r] = sum;
            } else {
                out[r] = score::<S>(&now, r, 0usize, head, config);
            }
        }
        #[unroll]
        for r in 0..rows {
            let t = chunk * comptime!(config.spans.chunk() as u32) + comptime!(r as u32 * UNITS) + UNIT_POS;
            // What is no number loses against every number.
            let value = select(out[r] == out[r], out[r], NOTHING);
            out[r] = select(t < len, value, NOTHING);
            if t < len {
                importance[CUBE_POS_Y as usize * stride as usize + t as usize] = value;
            }
        }
        note_spans(&out, maxima, chunk, chunks, config);
        chunk = after;
    }
}

/// A unit's scores of a chunk: of each token, the vectors that have a score of the list's query heads.
#[cube]
fn read_scores<S: Size>(
    read: &mut Array<Vector<u32, S>>,
    scores: &[Vector<u32, S>],
    chunk: u32,
    len: u32,
    stride: u32,
    head: usize,
    #[comptime] config: Config,
) {
    let (rows, sketch_group, per_word) = comptime!((config.spans.rows, config.sketch_group, config.per_word()));
    let width = S::value();
    let reads = comptime!(config.reads(width));
    let per_token = comptime!(sketch_group / per_word / width);
    let together =
        comptime!(if config.whole_words() { config.together() / per_word / width } else { config.together() });
    let first = chunk * comptime!(config.spans.chunk() as u32) + UNIT_POS;
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
}

/// The score of token `r` of the unit for query head `g` of the list.
#[cube]
fn score<S: Size>(
    read: &Array<Vector<u32, S>>,
    #[comptime] r: usize,
    #[comptime] g: usize,
    head: usize,
    #[comptime] config: Config,
) -> f32 {
    let per_word = comptime!(config.per_word());
    let width = S::value();
    let reads = comptime!(config.reads(width));
    if comptime!(config.whole_words()) {
        let vector = read[comptime!(r * reads + g / (per_word * width))];
        let word = vector.extract(comptime!(g / per_word % width));
        number(word, comptime!(g % per_word), comptime!(config.format()), config.native_half)
    } else {
        let upper = (head % comptime!(config.sketch_group) + comptime!(g % config.together())) % 2 == 1;
        half_at(read[comptime!(r * reads + g)].extract(0usize), upper, config.native_half)
    }
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
    note_spans(&read, maxima, CUBE_POS_X, CUBE_COUNT_X, config);
}

/// Writes the largest number of every span of a chunk, one of `chunks`.
#[cube]
fn note_spans(numbers: &Array<f32>, maxima: &mut [f32], chunk: u32, chunks: u32, #[comptime] config: Config) {
    let (rows, lanes, of_chunk) = comptime!((config.spans.rows, config.spans.lanes, config.spans.of_chunk()));
    let mut high = Array::<f32>::new(1usize);
    high[0] = numbers[0];
    #[unroll]
    for r in 1..rows {
        high[0] = max(high[0], numbers[r]);
    }
    let first = (CUBE_POS_Y as usize * chunks as usize + chunk as usize) * of_chunk;
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
        // The next chunk's numbers come into the same memory.
        sync_cube();
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
            let mut mine = f32::new(NOTHING);
            let mut total = 0.0f32.runtime();
            let mut i = UNIT_POS % config.plane;
            while i < block_count {
                let at = (from + i as usize) * 2;
                let (block, sum) = (blocks[at], blocks[at + 1]);
                let larger = max(mine, block);
                total = total * (mine - larger).exp() + sum * (block - larger).exp();
                mine = larger;
                i += config.plane;
            }
            let top = plane_max(mine);
            total = plane_sum(total * (mine - top).exp());
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
