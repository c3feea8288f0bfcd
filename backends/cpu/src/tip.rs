//! Token importance prediction: sketch rows against the queries of a group.

use crate::exp::exp;
use crate::isa::{LANES, dispatch, dot, fma, horizontal};
use fasa_core::sketch::{Precision, SketchRows};

dispatch! {
    /// TIP scores of `G` folded queries (`[G, 2F]`) against all rows of one sketch, `[G, n]`. Each row is decoded once.
    pub(crate) fn score(rows: &SketchRows<'_>, folded: &[f32], scores: &mut [f32]) = score_kernel
}

/// Largest row: all chunks of the largest head.
const MAX_CHANNELS: usize = fasa_core::rope::MAX_HEAD_DIM;

#[inline(always)]
fn score_kernel<const FMA: bool>(rows: &SketchRows<'_>, folded: &[f32], scores: &mut [f32]) {
    let whole_blocks = rows.chunks().is_multiple_of(LANES);
    match (rows.precision(), folded.len() / (2 * rows.chunks())) {
        (Precision::Int4, 1) if whole_blocks => int4_kernel::<FMA, 1>(rows, folded, scores),
        (Precision::Int4, 2) if whole_blocks => int4_kernel::<FMA, 2>(rows, folded, scores),
        (Precision::Int4, 4) if whole_blocks => int4_kernel::<FMA, 4>(rows, folded, scores),
        (Precision::Int4, 8) if whole_blocks => int4_kernel::<FMA, 8>(rows, folded, scores),
        _ => any_kernel::<FMA>(rows, folded, scores),
    }
}

/// int4 rows of a multiple of [`LANES`] chunks against G queries: nibbles go from memory to registers and are used at once.
///
/// Codes are stored with 8 added, and `Σ q (code + 8) = Σ q code + 8 Σ q`: the 8 is taken off once per row.
#[inline(always)]
fn int4_kernel<const FMA: bool, const G: usize>(rows: &SketchRows<'_>, folded: &[f32], scores: &mut [f32]) {
    let (n, bytes) = (rows.len(), rows.chunks());
    let queries: [_; G] = std::array::from_fn(|g| {
        let (first, second) = folded[g * 2 * bytes..(g + 1) * 2 * bytes].split_at(bytes);
        (first.as_chunks::<LANES>().0, second.as_chunks::<LANES>().0)
    });
    let shifts: [f32; G] =
        std::array::from_fn(|g| 8.0 * folded[g * 2 * bytes..(g + 1) * 2 * bytes].iter().sum::<f32>());
    let scales = rows.scales().as_chunks::<2>().0;
    for (t, (codes, scale)) in rows.codes().chunks_exact(bytes).zip(scales).enumerate() {
        let mut sums = [[0.0f32; LANES]; G];
        for (block, codes) in codes.as_chunks::<LANES>().0.iter().enumerate() {
            let (mut first, mut second) = ([0.0f32; LANES], [0.0f32; LANES]);
            for lane in 0..LANES {
                first[lane] = f32::from(codes[lane] & 15);
                second[lane] = f32::from(codes[lane] >> 4);
            }
            for (sums, query) in sums.iter_mut().zip(&queries) {
                for lane in 0..LANES {
                    let part = fma::<FMA>(first[lane], query.0[block][lane], sums[lane]);
                    sums[lane] = fma::<FMA>(second[lane], query.1[block][lane], part);
                }
            }
        }
        let scale = half_to_single(u16::from_le_bytes(*scale));
        for g in 0..G {
            scores[g * n + t] = (horizontal(sums[g]) - shifts[g]) * scale;
        }
    }
}

/// Any precision, any number of chunks and queries: each row is decoded to a buffer.
#[inline(always)]
fn any_kernel<const FMA: bool>(rows: &SketchRows<'_>, folded: &[f32], scores: &mut [f32]) {
    let (n, channels) = (rows.len(), 2 * rows.chunks());
    let mut buffer = [0.0f32; MAX_CHANNELS];
    let row = &mut buffer[..channels];
    let bytes = rows.precision().row_bytes(rows.chunks());
    for (t, codes) in rows.codes().chunks_exact(bytes).enumerate() {
        match rows.precision() {
            Precision::F32 => {
                for (x, b) in row.iter_mut().zip(codes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            Precision::F16 => {
                for (x, b) in row.iter_mut().zip(codes.as_chunks::<2>().0) {
                    *x = half_to_single(u16::from_le_bytes(*b));
                }
            }
            Precision::Int8 => {
                for (x, b) in row.iter_mut().zip(codes) {
                    *x = f32::from(*b as i8);
                }
            }
            _ => {
                let (first, second) = row.split_at_mut(codes.len());
                for ((x, y), b) in first.iter_mut().zip(second).zip(codes) {
                    *x = (i32::from(b & 15) - 8) as f32;
                    *y = (i32::from(b >> 4) - 8) as f32;
                }
            }
        }
        let scale = match rows.scales() {
            [] => 1.0,
            scales => half_to_single(u16::from_le_bytes([scales[2 * t], scales[2 * t + 1]])),
        };
        for (g, query) in folded.chunks_exact(channels).enumerate() {
            scores[g * n + t] = dot::<FMA>(query, row) * scale;
        }
    }
}

/// IEEE half to single for finite numbers, without branches so that it vectorizes: the exponent is rebiased by one
/// multiplication, which also turns subnormal halves into normal singles.
#[inline(always)]
fn half_to_single(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | ((half & 0x8000) << 16))
}

dispatch! {
    /// Mean over the group of `softmax(scores * scale)`: `scores` `[G, n]` is used up, `importance` `[n]` is written.
    pub(crate) fn group_mean(scores: &mut [f32], scale: f32, importance: &mut [f32]) = group_mean_kernel
}

#[inline(always)]
fn group_mean_kernel<const FMA: bool>(scores: &mut [f32], scale: f32, importance: &mut [f32]) {
    let n = importance.len();
    let group = scores.len() / n;
    importance.fill(0.0);
    for row in scores.chunks_exact_mut(n) {
        let (blocks, rest) = row.as_chunks_mut::<LANES>();
        let mut maxima = [f32::NEG_INFINITY; LANES];
        for block in blocks.iter() {
            for lane in 0..LANES {
                maxima[lane] = if block[lane] > maxima[lane] { block[lane] } else { maxima[lane] };
            }
        }
        let max = maxima.iter().chain(rest.iter()).copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            continue;
        }
        let mut totals = [0.0f32; LANES];
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp::<FMA>((block[lane] - max) * scale);
                totals[lane] += block[lane];
            }
        }
        let mut total: f32 = totals.iter().sum();
        for score in rest {
            *score = exp::<FMA>((*score - max) * scale);
            total += *score;
        }
        let factor = 1.0 / (total * group as f32);
        for (sum, weight) in importance.iter_mut().zip(row.iter()) {
            *sum = fma::<FMA>(*weight, factor, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_finite_half() {
        for bits in 0..=u16::MAX {
            let want = f16::from_bits(bits);
            if want.is_finite() {
                assert_eq!(half_to_single(bits).to_bits(), want.to_f32().to_bits(), "{bits:04x}");
            }
        }
    }
}
