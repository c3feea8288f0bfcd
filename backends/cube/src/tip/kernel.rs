//! What the device runs.

use super::{Codes, Config};
use crate::numbers::{Format, half_to_f32, number};
use crate::team::{Reduce, cube_reduce, scratch_len};
use cubecl::prelude::*;

/// The queries of a sketch in shared memory.
#[derive(CubeType)]
struct Folded {
    /// Per word of codes, query head and part of the word: four bytes, or the bits of a float.
    words: Shared<[u32]>,
    /// Per query head: what an integer sum is multiplied with.
    steps: Shared<[f32]>,
    /// Per query head: what a sum of int4 codes, which are stored without sign, has too much.
    excess: Shared<[i32]>,
}

/// Folds the static scales into the queries of sketch `head` and rounds them to bytes.
#[cube]
fn fold(queries: &[f32], channels: &[u32], scale: &[f32], dim: u32, head: usize, #[comptime] config: Config) -> Folded {
    let count = comptime!(2 * config.chunks);
    let (group, words, parts) = comptime!((config.group, config.words, config.per_word()));
    let mut folded = Shared::<[f32]>::new_slice(comptime!(group * count));
    let mut packed = Shared::<[u32]>::new_slice(comptime!(words * group * parts));
    let mut steps = Shared::<[f32]>::new_slice(group);
    let mut excess = Shared::<[i32]>::new_slice(group);
    let mut i = UNIT_POS as usize;
    while i < comptime!(group * count) {
        let (g, c) = (i / count, i % count);
        let x = queries[(head * group + g) * dim as usize + channels[head * count + c] as usize];
        folded[i] = if comptime!(config.integer()) { x * scale[head * count + c] } else { x };
        i += comptime!(config.units as usize);
    }
    sync_cube();
    if comptime!(config.integer()) {
        // The largest of each query head: few numbers, and every unit that writes one looks at all.
        if (UNIT_POS as usize) < group {
            let g = UNIT_POS as usize;
            let mut largest = 0.0f32;
            for c in 0..count {
                largest = max(largest, abs(folded[g * count + c]));
            }
            steps[g] = largest / 127.0f32;
        }
        sync_cube();
    }
    let mut i = UNIT_POS as usize;
    while i < comptime!(words * group * parts) {
        let (w, rest) = (i / comptime!(group * parts), i % comptime!(group * parts));
        let (g, part) = (rest / parts, rest % parts);
        packed[i] = match comptime!(config.precision) {
            // Word w holds chunks 4w to 4w + 3: the first dimensions of all, then the second ones.
            Codes::Int4 => four_bytes(&folded, &steps, g, part * config.chunks + 4 * w, w, config),
            Codes::Int8 => four_bytes(&folded, &steps, g, 4 * w, w, config),
            Codes::F16 => float_bits(&folded, g, 2 * w + part, config),
            Codes::F32 => float_bits(&folded, g, w, config),
        };
        i += comptime!(config.units as usize);
    }
    sync_cube();
    if comptime!(matches!(config.precision, Codes::Int4)) {
        if (UNIT_POS as usize) < group {
            let g = UNIT_POS as usize;
            let mut sum = 0i32;
            for w in 0..words {
                for part in 0..parts {
                    let eights = i32::cast_from(0x0808_0808u32);
                    sum = dp4a(i32::cast_from(packed[(w * group + g) * parts + part]), eights, sum);
                }
            }
            excess[g] = sum;
        }
        sync_cube();
    }
    Folded { words: packed, steps, excess }
}

#[cube]
fn abs(x: f32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) & 0x7fff_ffff)
}

/// Bytes of four channels from `first` on; those past the row's end are 0.
#[cube]
fn four_bytes(
    folded: &Shared<[f32]>,
    steps: &Shared<[f32]>,
    g: usize,
    first: usize,
    w: usize,
    #[comptime] config: Config,
) -> u32 {
    let step = steps[g];
    let inverse = select(step > 0.0f32, 1.0f32 / step, 0.0f32);
    let mut bytes = 0u32;
    // Channels of a word that the row has.
    let have = comptime!(if matches!(config.precision, Codes::Int4) { config.chunks } else { 2 * config.chunks });
    #[unroll]
    for i in 0..4usize {
        let inside = 4 * w + i < have;
        let at = select(inside, g * comptime!(2 * config.chunks) + first + i, g * comptime!(2 * config.chunks));
        let x = folded[at] * inverse;
        // To the nearest whole number, ties away from zero.
        let magnitude = min(u32::cast_from(abs(x) + 0.499_999_97f32), 127u32);
        let code = select(x < 0.0f32, 256u32 - magnitude, magnitude) & 255u32;
        bytes |= select(inside, code, 0u32) << comptime!(8 * i as u32);
    }
    bytes
}

/// The bits of one channel, 0 past the row's end.
#[cube]
fn float_bits(folded: &Shared<[f32]>, g: usize, c: usize, #[comptime] config: Config) -> u32 {
    let count = comptime!(2 * config.chunks);
    let inside = c < count;
    let x = folded[g * count + select(inside, c, 0usize)];
    select(inside, u32::reinterpret(x), 0u32)
}

/// A cube scores `rows` times its units' rows of one sketch.
#[cube(launch_unchecked)]
pub(super) fn tip_kernel<N: Size>(
    queries: &[f32],
    channels: &[u32],
    scale: &[f32],
    codes: &[Vector<u32, N>],
    scales: &[u32],
    scores: &mut [f32],
    blocks: &mut [f32],
    len: u32,
    capacity: u32,
    stride: u32,
    dim: u32,
    factor: f32,
    #[comptime] config: Config,
) {
    let head = CUBE_POS_Y as usize;
    let (group, parts, rows) = comptime!((config.group, config.per_word(), config.rows));
    let width = N::value();
    let vectors = comptime!(config.words / width);
    let first = CUBE_POS_X * comptime!(config.units * rows as u32) + UNIT_POS;
    // Rows past the last one are read as the last one, and not written.
    let mut row_codes = Array::<Vector<u32, N>>::new(comptime!(rows * vectors));
    let mut row_scales = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        let t = min(first + comptime!(r as u32 * config.units), len - 1);
        let at = head * capacity as usize + t as usize;
        #[unroll]
        for v in 0..vectors {
            row_codes[r * vectors + v] = codes[at * vectors + v];
        }
        if comptime!(config.integer()) {
            row_scales[r] = half_to_f32((scales[at / 2] >> ((t & 1) * 16)) & 0xffff);
        }
    }
    let folded = fold(queries, channels, scale, dim, head, config);
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
                            let word = row_codes[r * vectors + v].extract(i);
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
                            let word = row_codes[r * vectors + v].extract(i);
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
    // The block's largest scores and sums, for the softmax.
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(group, config.units, config.plane)));
    let mut largest = Array::<f32>::new(group);
    let mut total = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        largest[g] = out[g];
        #[unroll]
        for r in 1..rows {
            largest[g] = max(largest[g], out[r * group + g]);
        }
    }
    cube_reduce(&mut largest, &mut scratch, Reduce::Max, group, config.units, config.plane);
    #[unroll]
    for g in 0..group {
        total[g] = 0.0f32;
        #[unroll]
        for r in 0..rows {
            let t = first + comptime!(r as u32 * config.units);
            if t < len {
                let score = out[r * group + g];
                scores[(head * group + g) * stride as usize + t as usize] = score;
                total[g] += (score - largest[g]).exp();
            }
        }
    }
    cube_reduce(&mut total, &mut scratch, Reduce::Sum, group, config.units, config.plane);
    if UNIT_POS == 0 {
        #[unroll]
        for g in 0..group {
            let at = ((head * group + g) * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * 2;
            blocks[at] = largest[g];
            blocks[at + 1] = total[g];
        }
    }
}
