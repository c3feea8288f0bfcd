//! Row by row: norms and softmaxes of many tokens, what a prompt needs between matrix products.

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::team::{Reduce, cube_reduce, scratch_len};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube, which has a row to itself.
const UNITS: u32 = 256;

/// Less than any score.
const NOTHING: f32 = -1.0e30;

/// Cubes for `rows` rows, over two dimensions of the grid where one has too few places.
fn cubes(rows: usize) -> CubeCount {
    let across = rows.min(32_768);
    CubeCount::Static(across as u32, rows.div_ceil(across) as u32, 1)
}

/// `x / sqrt(mean(x²) + eps) * weight` of every row: `x` is `[rows, width]`, `weight` `[width]`, in f32. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for a size of 0.
pub fn rms_norm(gpu: &Gpu, x: &Handle, weight: &Handle, rows: usize, width: usize, eps: f32) -> Result<Handle> {
    ensure(rows > 0 && width > 0, "x", "a size is 0")?;
    let out = gpu.words(rows * width);
    // SAFETY: the lengths are those of the shapes; rows past the last are not touched.
    unsafe {
        norm_kernel::launch_unchecked(
            &gpu.client,
            cubes(rows),
            CubeDim::new_1d(UNITS),
            buffer(x, rows * width),
            buffer(weight, width),
            buffer(&out, rows * width),
            rows as u32,
            width as u32,
            eps,
            gpu.traits.plane,
        );
    }
    Ok(out)
}

#[cube(launch_unchecked)]
fn norm_kernel(x: &[f32], weight: &[f32], out: &mut [f32], rows: u32, width: u32, eps: f32, #[comptime] plane: u32) {
    let row = min(CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X, rows - 1);
    let from = (row * width) as usize;
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(1, UNITS, plane)));
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = 0.0f32;
    let mut i = UNIT_POS;
    while i < width {
        let value = x[from + i as usize];
        sum[0] += value * value;
        i += UNITS;
    }
    cube_reduce(&mut sum, &mut scratch, Reduce::Sum, 1usize, UNITS, plane);
    let factor = 1.0f32 / (sum[0] / f32::cast_from(width) + eps).sqrt();
    let mut i = UNIT_POS;
    while i < width {
        out[from + i as usize] = x[from + i as usize] * factor * weight[i as usize];
        i += UNITS;
    }
}

/// Softmax of a row that comes in tiles, as far as it has come.
#[derive(Debug, Clone)]
pub struct Softmax {
    /// Per row: the largest score so far.
    pub largest: Handle,
    /// Per row: the sum of weights relative to it.
    pub total: Handle,
    /// Per row: what the sums of earlier tiles are to be multiplied with.
    pub shrink: Handle,
    /// Rows.
    pub rows: usize,
}

impl Softmax {
    /// Turns a tile of scores, `[rows, count]` in f32, to weights in place. Row r is a query at place `r % queries`, which sees
    /// the tile's keys up to `seen_before + r % queries`; before the first tile, `before` is `None`. One launch.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for a size of 0 or rows that are not those before.
    pub fn tile(
        gpu: &Gpu,
        before: Option<&Self>,
        scores: &Handle,
        [rows, count]: [usize; 2],
        queries: usize,
        seen_before: usize,
    ) -> Result<Self> {
        ensure(rows > 0 && count > 0 && queries > 0, "scores", "a size is 0")?;
        ensure(before.is_none_or(|b| b.rows == rows), "before", "it has other rows")?;
        let new = || gpu.words(rows);
        let out = Self { largest: new(), total: new(), shrink: new(), rows };
        let nothing = gpu.words(rows);
        let (largest_before, total_before) = before.map_or((&nothing, &nothing), |b| (&b.largest, &b.total));
        // SAFETY: the lengths are those of the shapes; without earlier tiles, nothing of theirs is read.
        unsafe {
            softmax_kernel::launch_unchecked(
                &gpu.client,
                cubes(rows),
                CubeDim::new_1d(UNITS),
                buffer(scores, rows * count),
                buffer(largest_before, rows),
                buffer(total_before, rows),
                buffer(&out.largest, rows),
                buffer(&out.total, rows),
                buffer(&out.shrink, rows),
                rows as u32,
                count as u32,
                queries as u32,
                seen_before as u32,
                before.is_some(),
                gpu.traits.plane,
            );
        }
        Ok(out)
    }
}

#[cube(launch_unchecked)]
fn softmax_kernel(
    scores: &mut [f32],
    largest_before: &[f32],
    total_before: &[f32],
    largest: &mut [f32],
    total: &mut [f32],
    shrink: &mut [f32],
    rows: u32,
    count: u32,
    queries: u32,
    seen_before: u32,
    #[comptime] continued: bool,
    #[comptime] plane: u32,
) {
    let place = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    let row = min(place, rows - 1);
    let from = (row * count) as usize;
    // Keys after the query have no weight.
    let seen = min(count, seen_before + row % queries + 1);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(1, UNITS, plane)));
    let mut most = Array::<f32>::new(1usize);
    most[0] = f32::new(NOTHING);
    let mut i = UNIT_POS;
    while i < seen {
        most[0] = max(most[0], scores[from + i as usize]);
        i += UNITS;
    }
    cube_reduce(&mut most, &mut scratch, Reduce::Max, 1usize, UNITS, plane);
    let mut factor = 0.0f32;
    let mut sum_before = 0.0f32;
    if comptime!(continued) {
        let before = largest_before[row as usize];
        most[0] = max(most[0], before);
        factor = (before - most[0]).exp();
        sum_before = total_before[row as usize] * factor;
    }
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = 0.0f32;
    // A cube past the last row would write what another one reads.
    if place < rows {
        let mut i = UNIT_POS;
        while i < count {
            let mut weight = 0.0f32;
            if i < seen {
                weight = (scores[from + i as usize] - most[0]).exp();
            }
            scores[from + i as usize] = weight;
            sum[0] += weight;
            i += UNITS;
        }
    }
    cube_reduce(&mut sum, &mut scratch, Reduce::Sum, 1usize, UNITS, plane);
    if UNIT_POS == 0 && place < rows {
        largest[row as usize] = most[0];
        total[row as usize] = sum[0] + sum_before;
        shrink[row as usize] = factor;
    }
}
