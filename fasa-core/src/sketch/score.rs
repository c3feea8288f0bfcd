//! Queries against sketch rows: the TIP score.

use super::{HeadPlan, Precision, SketchRows};
use crate::error::{Result, expect_length};
use crate::importance::dot_blocks;
use half::f16;

/// Largest step of a folded query in the integer formats.
const LARGEST_STEP: f32 = 127.0;

/// Gathers the query's channels in sketch order, `[2F]`.
///
/// For the integer formats the static channel scale is folded in, and the result is rounded to at most 127 steps of
/// 1/127 of its largest channel: scores are inner products of small integers then, the same on every machine up to one
/// rounding. The error is that of an 8-bit number, a sixteenth of what rounding the keys to 4 bits does.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) unless `out` has 2F places,
/// [`Error::Capacity`](crate::Error::Capacity) if the query has too few dimensions.
pub fn fold_query(plan: &HeadPlan<'_>, query: &[f32], out: &mut [f32]) -> Result<()> {
    plan.fits("query", query.len())?;
    expect_length("out", out.len(), plan.channels.len())?;
    if plan.precision.scale_bytes() == 0 {
        for (folded, &channel) in out.iter_mut().zip(plan.channels) {
            *folded = query[usize::from(channel)];
        }
        return Ok(());
    }
    let mut largest = 0.0f32;
    for ((folded, &channel), scale) in out.iter_mut().zip(plan.channels).zip(plan.scale) {
        *folded = query[usize::from(channel)] * scale;
        largest = largest.max(folded.abs());
    }
    let step = largest / LARGEST_STEP;
    let inverse = 1.0 / step;
    if inverse.is_finite() && step.is_finite() {
        out.iter_mut().for_each(|folded| *folded = libm::roundf(*folded * inverse) * step);
    }
    Ok(())
}

/// TIP score of row `r`: `Σ_c q'_c code_c`, times the row scale. `folded` comes from [`fold_query`].
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) unless `folded` has 2F entries.
pub fn score_row(rows: &SketchRows<'_>, r: usize, folded: &[f32]) -> Result<f32> {
    expect_length("folded", folded.len(), 2 * rows.chunks)?;
    let row = rows.row(r);
    let sum = match rows.precision {
        Precision::F32 => dot_blocks::<4, u8>(folded, row, f32::from_le_bytes),
        Precision::F16 => dot_blocks::<2, u8>(folded, row, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Precision::Int8 => dot_blocks::<1, u8>(folded, row, |[code]| f32::from(code as i8)),
        Precision::Int4 => {
            let (first, second) = folded.split_at(rows.chunks);
            dot_blocks::<1, u8>(first, row, |[codes]| f32::from((codes & 15) as i8 - 8))
                + dot_blocks::<1, u8>(second, row, |[codes]| f32::from((codes >> 4) as i8 - 8))
        }
    };
    Ok(sum * rows.row_scale(r))
}

/// TIP scores of all rows. Time O(rows * F).
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) unless `folded` has 2F entries and `out` one place per row.
pub fn score(rows: &SketchRows<'_>, folded: &[f32], out: &mut [f32]) -> Result<()> {
    expect_length("out", out.len(), rows.len())?;
    for (r, score) in out.iter_mut().enumerate() {
        *score = score_row(rows, r, folded)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{dequantize_row, quantize_row};
    use super::*;
    use crate::rope::{Chunks, Pairing};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn channels(chunks: &Chunks, chosen: &[u16]) -> Vec<u16> {
        let mut out = vec![0; 2 * chosen.len()];
        chunks.channels(chosen, &mut out).expect("chunks exist");
        out
    }

    proptest! {
        #[test]
        fn scores_the_dequantized_keys(
            dim in (1usize..20).prop_map(|h| 2 * h),
            rows in 1usize..9,
            numbers in prop::collection::vec(-4.0f32..4.0, 40 * 12),
            offset in -20.0f32..20.0,
            pick in 0usize..4,
        ) {
            let precision = Precision::ALL[pick];
            let chunks = Chunks::new(dim, dim, Pairing::HalfSplit).expect("valid");
            let chosen: Vec<u16> = (0..chunks.len() as u16).filter(|i| i % 3 != 1).collect();
            let channels = channels(&chunks, &chosen);
            let scale: Vec<f32> = (0..channels.len()).map(|c| 0.25 + (c % 5) as f32).collect();
            let centre = vec![offset; channels.len()];
            let plan = HeadPlan::new(precision, &channels, &scale, &centre).expect("valid");
            let (code_bytes, scale_bytes) = (precision.row_bytes(chosen.len()), precision.scale_bytes());
            let (mut codes, mut scales) = (vec![0; rows * code_bytes], vec![0; rows * scale_bytes]);
            let keys: Vec<Vec<f32>> =
                numbers.chunks(40).take(rows).map(|r| r[..dim].iter().map(|x| x + offset).collect()).collect();
            for (r, key) in keys.iter().enumerate() {
                let scale = &mut scales[r * scale_bytes..(r + 1) * scale_bytes];
                quantize_row(&plan, key, &mut codes[r * code_bytes..(r + 1) * code_bytes], scale).expect("fits");
            }
            let sketch = SketchRows::new(precision, chosen.len(), rows, &codes, &scales).expect("lengths");
            let query = &numbers[numbers.len() - dim..];
            let (mut folded, mut scores) = (vec![0.0; channels.len()], vec![0.0; rows]);
            fold_query(&plan, query, &mut folded).expect("fits");
            score(&sketch, &folded, &mut scores).expect("fits");
            // The query that is scored: the integer formats round it to 127 steps.
            let unfolded: Vec<f32> = folded.iter().zip(&scale).map(|(f, s)| if scale_bytes == 0 { *f } else { f / s }).collect();
            let largest = channels.iter().zip(&scale).map(|(c, s)| (query[usize::from(*c)] * s).abs()).fold(0.0, f32::max);
            for ((c, s), q) in channels.iter().zip(&scale).zip(&unfolded) {
                let bound = if scale_bytes == 0 { 0.0 } else { largest / 127.0 / s * 0.501 };
                prop_assert!((query[usize::from(*c)] - q).abs() <= bound, "{precision:?}");
            }
            let shift: f32 = if scale_bytes == 0 { 0.0 } else { unfolded.iter().map(|q| q * offset).sum() };
            let mut seen = vec![0.0; channels.len()];
            for (r, key) in keys.iter().enumerate() {
                dequantize_row(&plan, &sketch, r, &mut seen).expect("fits");
                let want: f32 = unfolded.iter().zip(&seen).map(|(q, k)| q * k).sum();
                prop_assert!((scores[r] + shift - want).abs() < 2e-3 * (1.0 + want.abs() + shift.abs()), "{} {}", scores[r], want);
                // Every stored number is within half a step of the key, for the largest deviation of the row.
                let reach = channels.iter().zip(&scale).map(|(c, s)| ((key[usize::from(*c)] - offset) / s).abs()).fold(0.0, f32::max);
                for ((c, s), k) in channels.iter().zip(&scale).zip(&seen) {
                    let bound = match precision {
                        Precision::F32 => 0.0,
                        Precision::F16 => key[usize::from(*c)].abs() * 5e-4,
                        Precision::Int8 => s * reach / 127.0 * 0.51 + 1e-4,
                        Precision::Int4 => s * reach / 7.0 * 0.51 + 1e-4,
                    };
                    prop_assert!((key[usize::from(*c)] - k).abs() <= bound + 1e-5, "{precision:?}");
                }
            }
        }
    }

    #[test]
    fn extreme_keys_stay_finite() {
        let (channels, scale, centre) = ([0u16, 1], [1e-30f32, 1.0], [0.0f32; 2]);
        for precision in Precision::ALL {
            let plan = HeadPlan::new(precision, &channels, &scale, &centre).expect("valid");
            for key in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [1e38, -1e38], [0.0, 0.0], [1e-40, 0.0]] {
                let (mut codes, mut row_scale) = ([0; 8], [0; 2]);
                let (codes, row_scale) =
                    (&mut codes[..precision.row_bytes(1)], &mut row_scale[..precision.scale_bytes()]);
                quantize_row(&plan, &key, codes, row_scale).expect("fits");
                if precision != Precision::F32 {
                    let rows = SketchRows::new(precision, 1, 1, codes, row_scale).expect("lengths");
                    let mut folded = [0.0; 2];
                    fold_query(&plan, &[1.0, 1.0], &mut folded).expect("fits");
                    assert!(score_row(&rows, 0, &folded).expect("fits").is_finite(), "{precision:?} {key:?}");
                }
            }
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let (scale, centre) = ([1.0; 4], [0.0; 4]);
        assert!(HeadPlan::new(Precision::Int4, &[], &[], &[]).is_err());
        assert!(HeadPlan::new(Precision::Int4, &[0, 1, 2], &scale[..3], &centre[..3]).is_err());
        assert!(HeadPlan::new(Precision::Int4, &[0, 1], &[0.0, 1.0], &centre[..2]).is_err());
        assert!(HeadPlan::new(Precision::Int4, &[0, 1], &scale[..2], &[f32::NAN, 0.0]).is_err());
        let plan = HeadPlan::new(Precision::Int4, &[0, 9, 1, 3], &scale, &centre).expect("valid");
        assert!(quantize_row(&plan, &[0.0; 9], &mut [0; 2], &mut [0; 2]).is_err());
        assert!(quantize_row(&plan, &[0.0; 10], &mut [0; 3], &mut [0; 2]).is_err());
        assert!(SketchRows::new(Precision::Int4, 2, 3, &[0; 6], &[0; 5]).is_err());
        assert!(SketchRows::new(Precision::Int4, 2, usize::MAX, &[0; 6], &[0; 6]).is_err());
        assert!(SketchRows::new(Precision::Int4, 0, 0, &[], &[]).is_err());
    }
}
