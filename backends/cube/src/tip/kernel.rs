//! What the device runs.

use super::fold::{Folded, ask, fold};
use super::{Codes, Config};
use crate::length::tokens;
use crate::numbers::{Format, half_at, halves, number};
use crate::spans::UNITS;
use crate::team::{Reduce, cube_reduce, scratch_len};
use cubecl::prelude::*;

/// The score of places without a token.
pub(crate) const NOTHING: f32 = -1.0e30;

/// A unit's rows of a chunk.
#[derive(CubeType)]
pub(crate) struct Rows<N: Size> {
    pub codes: Array<Vector<u32, N>>,
    /// The words that the scales are in.
    pub scales: Array<u32>,
}

/// Cubes take the chunks of a sketch in turn, and read the rows of the next while they score those of one.
#[cube(launch_unchecked)]
pub(super) fn tip_kernel<N: Size, S: Size>(
    queries: &[f32],
    channels: &[u32],
    scale: &[f32],
    codes: &[Vector<u32, N>],
    scales: &[u32],
    length: &[u32],
    scores: &mut [Vector<u32, S>],
    blocks: &mut [f32],
    most_rows: u32,
    capacity: u32,
    stride: u32,
    dim: u32,
    factor: f32,
    #[comptime] config: Config,
) {
    let head = CUBE_POS_Y as usize;
    let asked = ask(channels, scale, head, config);
    let (group, rows) = comptime!((config.group, config.spans.rows));
    let chunk_rows = comptime!(config.spans.chunk() as u32);
    let len = tokens(length, most_rows, config.device_len);
    let chunks = (len + (chunk_rows - 1)) / chunk_rows;
    let mut chunk = CUBE_POS_X;
    let (width, score_width) = (N::value(), S::value());
    let vectors = comptime!(config.words / width);
    let mut next =
        Rows::<N> { codes: Array::<Vector<u32, N>>::new(comptime!(rows * vectors)), scales: Array::<u32>::new(rows) };
    let mut now =
        Rows::<N> { codes: Array::<Vector<u32, N>>::new(comptime!(rows * vectors)), scales: Array::<u32>::new(rows) };
    read_rows::<N>(&mut next, codes, scales, head, min(chunk, chunks - 1), len, capacity, config);
    let folded = fold(queries, &asked, dim, head, config);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(group, UNITS, config.plane)));
    let mut most = Array::<f32>::new(group);
    let mut total = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        most[g] = NOTHING;
        total[g] = 0.0f32;
    }
    while chunk < chunks {
        #[unroll]
        for i in 0..comptime!(rows * vectors) {
            now.codes[i] = next.codes[i];
        }
        #[unroll]
        for r in 0..rows {
            now.scales[r] = next.scales[r];
        }
        let after = chunk + CUBE_COUNT_X;
        if after < chunks {
            read_rows::<N>(&mut next, codes, scales, head, after, len, capacity, config);
        }
        let mut out = score_rows::<N>(&now, &folded, factor, config);
        let mut high = Array::<f32>::new(group);
        #[unroll]
        for g in 0..group {
            high[g] = NOTHING;
        }
        #[unroll]
        for r in 0..rows {
            let t = chunk * chunk_rows + comptime!(r as u32 * UNITS) + UNIT_POS;
            let inside = t < len;
            #[unroll]
            for g in 0..group {
                out[r * group + g] = select(inside, out[r * group + g], NOTHING);
                high[g] = max(high[g], out[r * group + g]);
            }
            if inside {
                let vectors = comptime!(config.score_words() / score_width);
                let at = (head * stride as usize + t as usize) * vectors;
                #[unroll]
                for v in 0..vectors {
                    let mut vector = Vector::<u32, S>::empty();
                    #[unroll]
                    for i in 0..score_width {
                        let word = comptime!(v * score_width + i);
                        if comptime!(config.half_scores()) {
                            let first = comptime!(r * group + 2 * word);
                            vector.insert(i, halves(out[first], out[first + 1], config.native_half));
                        } else {
                            vector.insert(i, u32::reinterpret(out[comptime!(r * group + word)]));
                        }
                    }
                    scores[at + v] = vector;
                }
            }
        }
        #[unroll]
        for g in 0..group {
            let top = max(most[g], high[g]);
            let mut sum = total[g] * (most[g] - top).exp();
            #[unroll]
            for r in 0..rows {
                sum += (out[r * group + g] - top).exp();
            }
            most[g] = top;
            total[g] = sum;
        }
        chunk = after;
    }
    // The largest score and the sum of powers relative to it, for the softmax.
    let mut top = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        top[g] = most[g];
    }
    cube_reduce(&mut top, &mut scratch, Reduce::Max, group, UNITS, config.plane);
    #[unroll]
    for g in 0..group {
        total[g] *= (most[g] - top[g]).exp();
    }
    cube_reduce(&mut total, &mut scratch, Reduce::Sum, group, UNITS, config.plane);
    if UNIT_POS == 0 {
        #[unroll]
        for g in 0..group {
            let at = ((head * group + g) * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * 2;
            blocks[at] = top[g];
            blocks[at + 1] = total[g];
        }
    }
}

/// Rows past the last one are read as the last one.
#[cube]
fn read_rows<N: Size>(
    into: &mut Rows<N>,
    codes: &[Vector<u32, N>],
    scales: &[u32],
    head: usize,
    chunk: u32,
    len: u32,
    capacity: u32,
    #[comptime] config: Config,
) {
    let rows = comptime!(config.spans.rows);
    let width = N::value();
    let vectors = comptime!(config.words / width);
    #[unroll]
    for r in 0..rows {
        let t = chunk * comptime!(config.spans.chunk() as u32) + comptime!(r as u32 * UNITS) + UNIT_POS;
        let at = head * capacity as usize + min(t, len - 1) as usize;
        #[unroll]
        for v in 0..vectors {
            into.codes[r * vectors + v] = codes[at * vectors + v];
        }
        if comptime!(config.integer()) {
            into.scales[r] = scales[at / 2];
        }
    }
}

/// Scores of a unit's rows, `[rows, group]`.
#[cube]
pub(crate) fn score_rows<N: Size>(
    now: &Rows<N>,
    folded: &Folded,
    factor: f32,
    #[comptime] config: Config,
) -> Array<f32> {
    let (group, parts, rows) = comptime!((config.group, config.per_word(), config.spans.rows));
    let width = N::value();
    let vectors = comptime!(config.words / width);
    let mut out = Array::<f32>::new(comptime!(rows * group));
    if comptime!(config.integer()) {
        let mut sums = Array::<i32>::new(comptime!(rows * group));
        #[unroll]
        for r in 0..rows {
            #[unroll]
            for g in 0..group {
                sums[r * group + g] =
                    if comptime!(matches!(config.precision, Codes::Int4)) { -folded.excess[g] } else { 0i32.runtime() };
            }
        }
        #[unroll]
        for v in 0..vectors {
            #[unroll]
            for i in 0..width {
                let w = comptime!(v * width + i);
                #[unroll]
                for part in 0..parts {
                    #[unroll]
                    for g in 0..group {
                        let query = i32::cast_from(folded.words[comptime!((w * group + g) * parts + part)]);
                        #[unroll]
                        for r in 0..rows {
                            let word = now.codes[r * vectors + v].extract(i);
                            let bytes = if comptime!(matches!(config.precision, Codes::Int8)) {
                                word
                            } else if comptime!(part == 0) {
                                word & 0x0f0f_0f0f
                            } else {
                                (word >> 4) & 0x0f0f_0f0f
                            };
                            sums[r * group + g] = dp4a(i32::cast_from(bytes), query, sums[r * group + g]);
                        }
                    }
                }
            }
        }
        let mut row_scales = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            // Chunks and capacities are even: the unit's number says which half of the word it is.
            row_scales[r] = half_at(now.scales[r], UNIT_POS % 2 == 1, config.native_half);
        }
        #[unroll]
        for g in 0..group {
            let step = folded.steps[g] * factor;
            #[unroll]
            for r in 0..rows {
                out[r * group + g] = f32::cast_from(sums[r * group + g]) * (step * row_scales[r]);
            }
        }
    } else {
        let format = comptime!(if matches!(config.precision, Codes::F16) { Format::F16 } else { Format::F32 });
        #[unroll]
        for r in 0..rows {
            #[unroll]
            for g in 0..group {
                out[r * group + g] = 0.0f32;
            }
        }
        #[unroll]
        for v in 0..vectors {
            #[unroll]
            for i in 0..width {
                let w = comptime!(v * width + i);
                #[unroll]
                for part in 0..parts {
                    #[unroll]
                    for g in 0..group {
                        let query = f32::reinterpret(folded.words[comptime!((w * group + g) * parts + part)]);
                        #[unroll]
                        for r in 0..rows {
                            let word = now.codes[r * vectors + v].extract(i);
                            out[r * group + g] += query * number(word, part, format, config.native_half);
                        }
                    }
                }
            }
        }
        #[unroll]
        for i in 0..comptime!(rows * group) {
            out[i] *= factor;
        }
    }
    out
}
