//! New tokens into the cache: their queries and keys turned by position, keys and values written in place.

use crate::attend::Cache;
use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::{Length, tokens};
use crate::numbers::{Format, word};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube.
const UNITS: u32 = 128;

/// New tokens as a projection leaves them.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// `[new, query heads + 2 * KV heads, dim]`, f32: queries, keys, values.
    pub qkv: &'a Handle,
    /// Cosines, `[new, turning / 2]`: dimension i turns with `i + turning / 2` (half-split), those behind `turning` stay.
    pub cos: &'a Handle,
    /// Sines, as the cosines.
    pub sin: &'a Handle,
    /// Dimensions that turn.
    pub turning: usize,
    /// Tokens.
    pub new: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    format: Format,
    dim: usize,
    query_heads: usize,
    kv_heads: usize,
    half: usize,
    device_len: bool,
}

/// Writes keys and values of `tokens` into rows of the cache from `position` on. Returns the queries, `[new, query_heads, dim]`.
///
/// Time: the bytes of the tokens. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the cache has too few rows, or more dimensions turn than there are.
pub fn append(gpu: &Gpu, tokens: Tokens<'_>, query_heads: usize, cache: &Cache, position: usize) -> Result<Handle> {
    append_before(gpu, tokens, query_heads, cache, &(position + tokens.new).into())
}

/// As [`append`], into the last of `end` rows.
///
/// # Errors
/// As [`append`].
pub fn append_before(gpu: &Gpu, tokens: Tokens<'_>, query_heads: usize, cache: &Cache, end: &Length) -> Result<Handle> {
    let Tokens { qkv, cos, sin, turning, new } = tokens;
    let (dim, kv_heads) = (cache.dim, cache.heads);
    ensure(new > 0 && new <= end.most() && end.most() <= cache.capacity, "position", "the cache has fewer rows")?;
    ensure(turning <= dim && turning.is_multiple_of(2), "turning", "an even number of a head's dimensions")?;
    let (heads, words) = (query_heads + 2 * kv_heads, cache.words()?);
    let out = gpu.words(new * query_heads * dim);
    let config =
        Config { format: cache.format, dim, query_heads, kv_heads, half: turning / 2, device_len: end.is_on_device() };
    let cubes = (heads * dim / 2).div_ceil(UNITS as usize);
    let across = new.min(32_768);
    let angles = (new * turning / 2).max(1);
    // SAFETY: the lengths are those of the shapes; rows written are below the capacity.
    unsafe {
        append_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(cubes as u32, across as u32, new.div_ceil(across) as u32),
            CubeDim::new_1d(UNITS),
            buffer(qkv, new * heads * dim),
            buffer(cos, angles),
            buffer(sin, angles),
            buffer(&out, new * query_heads * dim),
            buffer(&cache.keys, kv_heads * cache.capacity * words),
            buffer(&cache.values, kv_heads * cache.capacity * words),
            buffer(end.handle().unwrap_or(qkv), 1),
            new as u32,
            end.most() as u32,
            cache.capacity as u32,
            config,
        );
    }
    Ok(out)
}

/// A unit has two numbers that follow each other in a head.
#[cube(launch_unchecked)]
fn append_kernel(
    qkv: &[f32],
    cos: &[f32],
    sin: &[f32],
    queries: &mut [f32],
    keys: &mut [u32],
    values: &mut [u32],
    length: &[u32],
    new: u32,
    most: u32,
    capacity: u32,
    #[comptime] config: Config,
) {
    let position = max(tokens(length, most, config.device_len), new) - new;
    let (dim, query_heads, kv_heads) = comptime!((config.dim, config.query_heads, config.kv_heads));
    let heads = comptime!(config.query_heads + 2 * config.kv_heads);
    let token = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) as usize;
    let place = (CUBE_POS_X * UNITS + UNIT_POS) as usize * 2;
    if token < new as usize && place < comptime!(heads * config.dim) {
        let (head, c) = (place / dim, place % dim);
        let from = (token * heads + head) * dim;
        let turns = head < comptime!(config.query_heads + config.kv_heads);
        let first = turned(qkv, cos, sin, from, c, token, turns, config);
        let second = turned(qkv, cos, sin, from, c + 1, token, turns, config);
        if head < query_heads {
            let at = (token * query_heads + head) * dim + c;
            queries[at] = first;
            queries[at + 1] = second;
        } else {
            let kv_head = (head - query_heads) % kv_heads;
            let number = (kv_head * capacity as usize + position as usize + token) * dim + c;
            if head < comptime!(config.query_heads + config.kv_heads) {
                put(keys, number, first, second, config.format);
            } else {
                put(values, number, first, second, config.format);
            }
        }
    }
}

/// Number `c` of the head at `from`, turned if the head is.
#[cube]
fn turned(
    qkv: &[f32],
    cos: &[f32],
    sin: &[f32],
    from: usize,
    c: usize,
    token: usize,
    turns: bool,
    #[comptime] config: Config,
) -> f32 {
    let half = comptime!(config.half);
    let mut value = qkv[from + c];
    if comptime!(config.half > 0) {
        if turns && c < comptime!(2 * config.half) {
            let is_first = c < half;
            let pair = select(is_first, c, c - half);
            let other = qkv[from + select(is_first, c + half, pair)];
            let angle = token * half + pair;
            value = value * cos[angle] + select(is_first, -other, other) * sin[angle];
        }
    }
    value
}

/// Writes two numbers, the first of which is the even number `number` of the buffer.
#[cube]
fn put(words: &mut [u32], number: usize, first: f32, second: f32, #[comptime] format: Format) {
    if comptime!(matches!(format, Format::F32)) {
        words[number] = u32::reinterpret(first);
        words[number + 1] = u32::reinterpret(second);
    } else {
        words[number / 2] = word(first, second, format);
    }
}
