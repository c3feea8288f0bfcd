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
        Precision::Int8 | Precision::Int4 => {
            let largest = largest_code(plan.precision);
            let reach = (0..plan.channels.len()).map(|c| normalised(plan, key, c)).fold(0.0f32, |m, x| m.max(x.abs()));
            let stored = f16::from_f32((reach / largest).min(f16::MAX.to_f32()));
            scale.copy_from_slice(&stored.to_le_bytes());
            let step = stored.to_f32();
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let code = |c| libm::roundf(normalised(plan, key, c) * inverse).clamp(-largest, largest) as i8;
            if plan.precision == Precision::Int8 {
                for (c, byte) in codes.iter_mut().enumerate() {
                    *byte = code(c) as u8;
                }
            } else {
                let chunks = plan.chunks();
                for (c, byte) in codes.iter_mut().enumerate() {
                    *byte = (code(c) + 8) as u8 | (((code(c + chunks) + 8) as u8) << 4);
                }
            }
        }
    }
    Ok(())
}

/// `(k − centre) / scale` of channel `c` in sketch order.
#[inline]
fn normalised(plan: &HeadPlan<'_>, key: &[f32], c: usize) -> f32 {
    let x = (key[usize::from(plan.channels[c])] - plan.centre[c]) / plan.scale[c];
    if x.is_nan() { 0.0 } else { x }
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
