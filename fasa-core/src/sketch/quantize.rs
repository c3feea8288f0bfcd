//! Keys to sketch rows.

use super::{HeadPlan, Precision, SketchRows};
use crate::error::{Result, expect_length};
use half::f16;

/// Largest code of an integer format.
const fn largest_code(precision: Precision) -> f32 {
    match precision {
        Precision::Int4 => 7.0,
        _ => 127.0,
    }
}

/// Writes the sketch row of one rotated key.
///
/// `codes` has [`Precision::row_bytes`] bytes, `scale` [`Precision::scale_bytes`]. Rounding is to the nearest code, ties
/// away from zero. A NaN in the key is stored as 0, an infinity as the largest number of the format; `F32` stores both
/// as they are.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if a slice has another length,
/// [`Error::Capacity`](crate::Error::Capacity) if the key has too few dimensions.
pub fn quantize_row(plan: &HeadPlan<'_>, key: &[f32], codes: &mut [u8], scale: &mut [u8]) -> Result<()> {
    plan.fits("key", key.len())?;
    expect_length("codes", codes.len(), plan.precision.row_bytes(plan.chunks()))?;
    expect_length("scale", scale.len(), plan.precision.scale_bytes())?;
    match plan.precision {
        Precision::F32 => {
            for (code, &channel) in codes.chunks_exact_mut(4).zip(plan.channels) {
                code.copy_from_slice(&key[usize::from(channel)].to_le_bytes());
            }
        }
        Precision::F16 => {
            for (code, &channel) in codes.chunks_exact_mut(2).zip(plan.channels) {
                // Saturate: an infinite score would rank one token above everything for ever.
                let value = key[usize::from(channel)].clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
                let value = if value.is_nan() { 0.0 } else { value };
                code.copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        }
        Precision::Int8 | Precision::Int4 => quantize_integers(plan, key, codes, scale),
    }
    Ok(())
}

/// Chunks that are normalised at a time: all of a head of 128 dimensions, in 512 bytes of stack. Not [`MAX_HEAD_DIM`] of
/// them: a microcontroller may have no 4 KiB to spare, and clearing as much costs more than a usual row does.
///
/// [`MAX_HEAD_DIM`]: crate::rope::MAX_HEAD_DIM
const BLOCK: usize = 64;

/// The integer formats. Loops run over plain slices, so that they compile to vector instructions.
fn quantize_integers(plan: &HeadPlan<'_>, key: &[f32], codes: &mut [u8], scale: &mut [u8]) {
    let (largest, chunks) = (largest_code(plan.precision), plan.chunks());
    let (mut firsts, mut seconds) = ([0.0; BLOCK], [0.0; BLOCK]);
    let blocks = || (0..chunks).step_by(BLOCK).map(|start| (start, BLOCK.min(chunks - start)));
    let normalise = |start, firsts: &mut [f32], seconds: &mut [f32]| {
        normalise(plan, key, start, firsts);
        normalise(plan, key, chunks + start, seconds);
    };
    let mut reach = 0.0f32;
    for (start, len) in blocks() {
        normalise(start, &mut firsts[..len], &mut seconds[..len]);
        reach = reach.max(furthest(&firsts[..len])).max(furthest(&seconds[..len]));
    }
    let stored = f16::from_f32((reach / largest).min(f16::MAX.to_f32()));
    scale.copy_from_slice(&stored.to_le_bytes());
    let step = stored.to_f32();
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (start, len) in blocks() {
        let (firsts, seconds) = (&mut firsts[..len], &mut seconds[..len]);
        // A row of one block is still there.
        if chunks > BLOCK {
            normalise(start, firsts, seconds);
        }
        let code = |x: &f32| nearest_code(x * inverse, largest);
        if plan.precision == Precision::Int4 {
            for ((byte, first), second) in codes[start..].iter_mut().zip(&*firsts).zip(&*seconds) {
                *byte = ((code(first) + 8) | ((code(second) + 8) << 4)) as u8;
            }
        } else {
            let (first_codes, second_codes) = codes.split_at_mut(chunks);
            for (codes, numbers) in [(first_codes, firsts), (second_codes, seconds)] {
                for (byte, x) in codes[start..].iter_mut().zip(&*numbers) {
                    *byte = code(x) as u8;
                }
            }
        }
    }
}

/// `(k − centre) / scale` of the channels from `start` on, in sketch order; 0 for a NaN.
fn normalise(plan: &HeadPlan<'_>, key: &[f32], start: usize, out: &mut [f32]) {
    let range = start..start + out.len();
    // In two loops: a vector instruction divides many numbers at once, but only the first loop can jump about in the key.
    for (x, &channel) in out.iter_mut().zip(&plan.channels[range.clone()]) {
        *x = key[usize::from(channel)];
    }
    for ((x, scale), centre) in out.iter_mut().zip(&plan.scale[range.clone()]).zip(&plan.centre[range]) {
        let normalised = (*x - centre) / scale;
        *x = if normalised.is_nan() { 0.0 } else { normalised };
    }
}

/// The largest magnitude of numbers that are no NaN.
fn furthest(numbers: &[f32]) -> f32 {
    // Bit patterns without the sign are in the order of the magnitudes, and whole numbers have a vector maximum that needs
    // no thought of NaN.
    f32::from_bits(numbers.iter().fold(0, |most, x| most.max(x.abs().to_bits())))
}

/// `x` rounded to the nearest whole number, ties away from zero, within ±`largest`, which is a whole number.
fn nearest_code(x: f32, largest: f32) -> i32 {
    // Adding 0.5 itself would round 0.49999997, the number before it, up to 1. The conversion cuts off fractions.
    const BELOW_HALF: f32 = 0.5f32.next_down();
    let x = x.clamp(-largest, largest);
    (x + BELOW_HALF.copysign(x)) as i32
}

/// The key channels that row `r` stands for, in sketch order, `[2F]`: what scoring sees. For tests and inspection.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) unless `out` has 2F places.
pub fn dequantize_row(plan: &HeadPlan<'_>, rows: &SketchRows<'_>, r: usize, out: &mut [f32]) -> Result<()> {
    expect_length("out", out.len(), 2 * rows.chunks)?;
    expect_length("plan.channels", plan.channels.len(), 2 * rows.chunks)?;
    let (row, step) = (rows.row(r), rows.row_scale(r));
    for (c, value) in out.iter_mut().enumerate() {
        let code = match rows.precision {
            Precision::F32 => {
                *value = f32::from_le_bytes([row[4 * c], row[4 * c + 1], row[4 * c + 2], row[4 * c + 3]]);
                continue;
            }
            Precision::F16 => {
                *value = f16::from_le_bytes([row[2 * c], row[2 * c + 1]]).to_f32();
                continue;
            }
            Precision::Int8 => i32::from(row[c] as i8),
            Precision::Int4 if c < rows.chunks => i32::from(row[c] & 15) - 8,
            Precision::Int4 => i32::from(row[c - rows.chunks] >> 4) - 8,
        };
        *value = code as f32 * step * plan.scale[c] + plan.centre[c];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `nearest_code` stands for.
    fn rounded(x: f32, largest: f32) -> i32 {
        libm::roundf(x).clamp(-largest, largest) as i32
    }

    /// Both functions rise with x in steps of one: equal on both sides of every step, they are equal everywhere.
    #[test]
    fn codes_are_rounded_as_libm_rounds() {
        for largest in [7.0, 127.0] {
            for code in 0..=128 {
                let step = code as f32 + 0.5;
                for x in [code as f32, step.next_down(), step, step.next_up()] {
                    assert_eq!(nearest_code(x, largest), rounded(x, largest), "{x}");
                    assert_eq!(nearest_code(-x, largest), rounded(-x, largest), "-{x}");
                }
            }
            for x in [f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, f32::INFINITY, 8_388_609.0] {
                assert_eq!(nearest_code(x, largest), rounded(x, largest), "{x}");
                assert_eq!(nearest_code(-x, largest), rounded(-x, largest), "-{x}");
            }
        }
    }

    #[test]
    #[ignore = "every f32, which takes a while: codes_are_rounded_as_libm_rounds says why its cases are enough"]
    fn all_codes_are_rounded_as_libm_rounds() {
        for x in (0..=u32::MAX).map(f32::from_bits) {
            assert_eq!(nearest_code(x, 127.0), rounded(x, 127.0), "{x}");
        }
    }

    /// The definition, number by number.
    fn plainly(plan: &HeadPlan<'_>, key: &[f32]) -> (std::vec::Vec<u8>, [u8; 2]) {
        let largest = largest_code(plan.precision);
        let normalised = |c: usize| {
            let x = (key[usize::from(plan.channels[c])] - plan.centre[c]) / plan.scale[c];
            if x.is_nan() { 0.0 } else { x }
        };
        let channels = 0..plan.channels.len();
        let reach = channels.clone().map(normalised).fold(0.0f32, |most, x| most.max(x.abs()));
        let scale = f16::from_f32((reach / largest).min(f16::MAX.to_f32()));
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let code = |c| rounded(normalised(c) * inverse, largest);
        let codes = match plan.precision {
            Precision::Int4 => {
                (0..plan.chunks()).map(|i| (code(i) + 8) as u8 | (((code(i + plan.chunks()) + 8) as u8) << 4)).collect()
            }
            _ => channels.map(|c| code(c) as u8).collect(),
        };
        (codes, scale.to_le_bytes())
    }

    #[test]
    fn rows_of_any_length_and_any_numbers() {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for chunks in [1, 2, 3, 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7, 512] {
            for kind in 0..8 {
                let mut number = || match (kind, random()) {
                    // Any bit pattern; zeros; subnormal; beyond f16; and one number in eight no number at all.
                    (0, r) => f32::from_bits(r << 8),
                    (1, _) => 0.0,
                    (2, r) => f32::from_bits(r >> 8),
                    (3, r) => r as f32 * 1e30,
                    (4, r) if r % 8 == 0 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][r as usize / 8 % 4],
                    (_, r) => r as f32 / (1 << 23) as f32 - 1.0,
                };
                let key: std::vec::Vec<f32> = (0..2 * chunks).map(|_| number()).collect();
                let channels: std::vec::Vec<u16> = (0..2 * chunks as u16).rev().collect();
                let scale: std::vec::Vec<f32> = (0..2 * chunks).map(|c| 0.25 + (c % 7) as f32).collect();
                let centre: std::vec::Vec<f32> = (0..2 * chunks).map(|c| (c % 5) as f32 - 2.0).collect();
                for precision in [Precision::Int8, Precision::Int4] {
                    let plan = HeadPlan::new(precision, &channels, &scale, &centre).expect("sound");
                    let (mut codes, mut row_scale) = (std::vec![0; precision.row_bytes(chunks)], [0; 2]);
                    quantize_row(&plan, &key, &mut codes, &mut row_scale).expect("fits");
                    assert_eq!((codes, row_scale), plainly(&plan, &key), "{precision:?} {chunks} {kind}");
                }
            }
        }
    }
}
