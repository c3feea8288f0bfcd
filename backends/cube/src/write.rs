//! Sketch rows of keys that are in the cache: what `quantize_row` of `fasa-core` does on the host.

use crate::attend::Cache;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::{Length, tokens};
use crate::numbers::{Format, f32_to_half, half_to_f32};
use crate::team::{Reduce, cube_reduce, scratch_len};
use crate::tip::{Channels, Codes, Sketch};
use cubecl::prelude::*;
use std::ops::Range;

/// Units of a cube, which writes the rows of two tokens: their scales share a word.
const UNITS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    precision: Codes,
    format: Format,
    chunks: usize,
    words: usize,
    plane: u32,
    /// Whether the last row is the last of a number that is read from the device, and the only one.
    device_len: bool,
    /// Whether the cache has one row per head.
    alone: bool,
}

impl Config {
    const fn integer(&self) -> bool {
        matches!(self.precision, Codes::Int4 | Codes::Int8)
    }

    /// The largest code of an integer format.
    const fn largest(&self) -> f32 {
        if matches!(self.precision, Codes::Int4) { 7.0 } else { 127.0 }
    }
}

/// Writes the sketch rows of the tokens `rows` from their keys. Sketches share the KV heads equally.
///
/// Time: the bytes of the keys, once. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if a buffer has fewer rows, or the heads do not divide.
pub fn write(gpu: &Gpu, cache: &Cache, sketch: &Sketch, channels: &Channels, rows: Range<usize>) -> Result<()> {
    let end = Length::from(rows.end);
    write_before(gpu, cache, sketch, channels, rows, &end, 0)
}

/// As [`write`], where the cache's first row is the token `first`: for keys that are on the device for a moment only.
///
/// # Errors
/// As [`write`].
pub fn write_from(
    gpu: &Gpu,
    cache: &Cache,
    first: usize,
    sketch: &Sketch,
    channels: &Channels,
    rows: Range<usize>,
) -> Result<()> {
    ensure(first <= rows.start, "rows", "they begin before the cache does")?;
    let end = Length::from(rows.end);
    write_before(gpu, cache, sketch, channels, rows, &end, first)
}

/// As [`write`], the row of the last of `end` tokens.
///
/// # Errors
/// As [`write`].
pub fn write_last(gpu: &Gpu, cache: &Cache, sketch: &Sketch, channels: &Channels, end: &Length) -> Result<()> {
    ensure(end.most() > 0, "rows", "there is none")?;
    write_before(gpu, cache, sketch, channels, end.most() - 1..end.most(), end, 0)
}

/// As [`write_last`], where the cache has that token's key and no other.
///
/// # Errors
/// As [`write`].
pub fn write_alone(gpu: &Gpu, cache: &Cache, sketch: &Sketch, channels: &Channels, end: &Length) -> Result<()> {
    ensure(end.most() > 0 && cache.capacity == 1, "rows", "there is one")?;
    write_before(gpu, cache, sketch, channels, end.most() - 1..end.most(), end, end.most() - 1)
}

fn write_before(
    gpu: &Gpu,
    cache: &Cache,
    sketch: &Sketch,
    channels: &Channels,
    rows: Range<usize>,
    end: &Length,
    first_row: usize,
) -> Result<()> {
    ensure(rows.end <= cache.capacity + first_row && rows.end <= sketch.capacity, "rows", "the cache has fewer")?;
    ensure(sketch.heads.is_multiple_of(cache.heads), "sketch", "its heads do not divide among the cache's")?;
    if rows.is_empty() {
        return Ok(());
    }
    let config = Config {
        precision: Codes::new(sketch.precision)?,
        format: cache.format,
        chunks: sketch.chunks,
        words: sketch.words(),
        plane: gpu.traits.plane,
        device_len: end.is_on_device(),
        alone: cache.capacity == 1,
    };
    let (first, last) = (rows.start / 2, (rows.end - 1) / 2);
    let pairs = last - first + 1;
    let across = pairs.min(32_768);
    let table = sketch.heads * 2 * sketch.chunks;
    // SAFETY: the lengths are those of `Cache`, `Sketch` and `Channels`; the kernel touches rows of the range only, which is
    // inside both.
    unsafe {
        write_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(across as u32, pairs.div_ceil(across) as u32, sketch.heads as u32),
            CubeDim::new_1d(UNITS),
            buffer(&cache.keys, cache.heads * cache.capacity * cache.words()?),
            buffer(&channels.channels, table),
            buffer(&channels.scale, table),
            buffer(&channels.centre, table),
            buffer(&sketch.codes, sketch.heads * sketch.capacity * config.words),
            buffer(&sketch.scales, sketch.heads * sketch.capacity / 2),
            buffer(end.handle().unwrap_or(&cache.keys), 1),
            first as u32,
            rows.start as u32,
            rows.end as u32,
            first_row as u32,
            cache.capacity as u32,
            sketch.capacity as u32,
            (sketch.heads / cache.heads) as u32,
            cache.dim as u32,
            config,
        );
    }
    Ok(())
}

#[cube(launch_unchecked)]
fn write_kernel(
    keys: &[u32],
    channels: &[u32],
    scale: &[f32],
    centre: &[f32],
    codes: &mut [u32],
    scales: &mut [u32],
    length: &[u32],
    first_pair: u32,
    from: u32,
    to: u32,
    first_row: u32,
    cache_capacity: u32,
    sketch_capacity: u32,
    sketches_per_head: u32,
    dim: u32,
    #[comptime] config: Config,
) {
    let (chunks, words) = comptime!((config.chunks, config.words));
    let count = comptime!(2 * config.chunks);
    let head = CUBE_POS_Z;
    let to = tokens(length, to, config.device_len);
    let from = if comptime!(config.device_len) { to - 1 } else { from };
    let first_pair = if comptime!(config.device_len) { (to - 1) / 2 } else { first_pair };
    let pair = first_pair + CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    let mut numbers = Shared::<[f32]>::new_slice(comptime!(2 * config.chunks));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(1, UNITS, config.plane)));
    let mut stored = Array::<u32>::new(2usize);
    #[unroll]
    for half in 0..2u32 {
        let t = pair * 2 + half;
        let inside = t >= from && t < to;
        // Rows outside are read as one that is inside, so that all units go the same way.
        let inside_row = min(max(t, from), to - 1);
        let row = if comptime!(config.alone) { 0u32.runtime() } else { inside_row - first_row };
        let key = ((head / sketches_per_head) * cache_capacity + row) * dim;
        let mut reach = Array::<f32>::new(1usize);
        reach[0] = 0.0f32;
        let mut c = UNIT_POS as usize;
        while c < count {
            let at = head as usize * count + c;
            let mut x = number_at(keys, (key + channels[at]) as usize, config.format);
            if comptime!(config.integer()) {
                x = (x - centre[at]) / scale[at];
            }
            let magnitude = u32::reinterpret(x) & 0x7fff_ffff;
            if comptime!(!matches!(config.precision, Codes::F32)) {
                x = select(magnitude > 0x7f80_0000, 0.0f32, x);
            }
            numbers[c] = x;
            reach[0] = max(reach[0], f32::reinterpret(u32::reinterpret(x) & 0x7fff_ffff));
            c += comptime!(UNITS as usize);
        }
        sync_cube();
        let mut inverse = 0.0f32;
        if comptime!(config.integer()) {
            cube_reduce(&mut reach, &mut scratch, Reduce::Max, 1usize, UNITS, config.plane);
            stored[half as usize] = f32_to_half(min(reach[0] / comptime!(config.largest()), 65504.0f32));
            let step = half_to_f32(stored[half as usize]);
            inverse = select(step > 0.0f32, 1.0f32 / step, 0.0f32);
        }
        let mut w = UNIT_POS as usize;
        while w < words {
            let mut word = 0u32;
            match comptime!(config.precision) {
                Codes::Int4 =>
                {
                    #[unroll]
                    for i in 0..4usize {
                        let chunk = 4 * w + i;
                        let there = chunk < chunks;
                        let at = select(there, chunk, 0usize);
                        let low = code(numbers[at], inverse, 7.0f32, 8u32);
                        let high = code(numbers[at + chunks], inverse, 7.0f32, 8u32);
                        word |= select(there, low | (high << 4), 0u32) << comptime!(8 * i as u32);
                    }
                }
                Codes::Int8 =>
                {
                    #[unroll]
                    for i in 0..4usize {
                        let c = 4 * w + i;
                        let there = c < count;
                        let byte = code(numbers[select(there, c, 0usize)], inverse, 127.0f32, 256u32) & 255;
                        word |= select(there, byte, 0u32) << comptime!(8 * i as u32);
                    }
                }
                Codes::F16 => {
                    let low = min(max(numbers[2 * w], -65504.0f32), 65504.0f32);
                    let high = min(max(numbers[2 * w + 1], -65504.0f32), 65504.0f32);
                    word = f32_to_half(low) | (f32_to_half(high) << 16);
                }
                Codes::F32 => word = u32::reinterpret(numbers[w]),
            }
            if inside {
                codes[(head * sketch_capacity + t) as usize * words + w] = word;
            }
            w += comptime!(UNITS as usize);
        }
        sync_cube();
    }
    if comptime!(config.integer()) {
        if UNIT_POS == 0 {
            let at = ((head * sketch_capacity) / 2 + pair) as usize;
            let first = pair * 2;
            let mut word = scales[at];
            if first >= from && first < to {
                word = (word & 0xffff_0000) | stored[0];
            }
            if first + 1 >= from && first + 1 < to {
                word = (word & 0xffff) | (stored[1] << 16);
            }
            scales[at] = word;
        }
    }
}

/// Number `i` of words.
#[cube]
fn number_at(words: &[u32], i: usize, #[comptime] format: Format) -> f32 {
    match comptime!(format) {
        Format::F32 => f32::reinterpret(words[i]),
        Format::F16 => half_to_f32((words[i / 2] >> ((i as u32 & 1) * 16)) & 0xffff),
        Format::Bf16 => f32::reinterpret((words[i / 2] >> ((i as u32 & 1) * 16)) << 16),
    }
}

/// `x * inverse` to the nearest whole number, ties away from zero, within ±`largest`, plus `shift`.
#[cube]
fn code(x: f32, inverse: f32, largest: f32, shift: u32) -> u32 {
    let scaled = min(max(x * inverse, -largest), largest);
    let magnitude = u32::cast_from(f32::reinterpret(u32::reinterpret(scaled) & 0x7fff_ffff) + 0.499_999_97f32);
    select(scaled < 0.0f32, shift - magnitude, shift + magnitude)
}
