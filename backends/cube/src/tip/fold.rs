//! Queries as the kernel multiplies them with codes.

use super::{Codes, Config};
use cubecl::prelude::*;

/// The queries of a sketch in shared memory.
#[derive(CubeType)]
pub(crate) struct Folded {
    /// Per word of codes, query head and part of the word: four bytes, or the bits of a float.
    pub words: Shared<[u32]>,
    /// Per query head: what an integer sum is multiplied with.
    pub steps: Shared<[f32]>,
    /// Per query head: what a sum of int4 codes, which are stored without sign, has too much.
    pub excess: Shared<[i32]>,
}

/// What a unit folds: channel numbers and static scales, asked for before anything waits.
#[derive(CubeType)]
pub(crate) struct Asked {
    channel: Array<u32>,
    scale: Array<f32>,
}

/// Reads the unit's channels of sketch `head`.
#[cube]
pub(crate) fn ask(channels: &[u32], scale: &[f32], head: usize, #[comptime] config: Config) -> Asked {
    let (count, team, numbers) = comptime!((2 * config.chunks, config.fold_team(), config.fold_numbers()));
    let mut asked = Asked { channel: Array::<u32>::new(numbers), scale: Array::<f32>::new(numbers) };
    #[unroll]
    for k in 0..numbers {
        let i = min(comptime!(k * team) + UNIT_POS as usize % team, comptime!(config.fold_heads() * count - 1));
        asked.channel[k] = channels[head * count + i % count];
        asked.scale[k] = 1.0f32;
        if comptime!(config.integer()) {
            asked.scale[k] = scale[head * count + i % count];
        }
    }
    asked
}

/// Folds the static scales into the queries of sketch `head` and rounds them to bytes.
#[cube]
pub(crate) fn fold(queries: &[f32], asked: &Asked, dim: u32, head: usize, #[comptime] config: Config) -> Folded {
    let count = comptime!(2 * config.chunks);
    let (group, words, parts) = comptime!((config.group, config.words, config.per_word()));
    let mut folded = Shared::<[f32]>::new_slice(comptime!(group * count));
    let mut packed = Shared::<[u32]>::new_slice(comptime!(words * group * parts));
    let mut steps = Shared::<[f32]>::new_slice(group);
    let mut excess = Shared::<[i32]>::new_slice(group);
    // A plane folds query heads without the others; where planes cannot be used the cube goes through all heads together.
    if comptime!(config.plane > 0) {
        let planes = comptime!((config.units / config.plane) as usize);
        let mut g = (UNIT_POS / config.plane) as usize;
        while g < group {
            let unit = (UNIT_POS % config.plane) as usize;
            let team = comptime!(config.plane as usize);
            fold_heads(
                queries,
                asked,
                &mut folded,
                &mut packed,
                &mut steps,
                &mut excess,
                dim,
                head,
                g,
                unit,
                1usize,
                team,
                config,
            );
            g += planes;
        }
    } else {
        let (unit, team) = (UNIT_POS as usize, comptime!(config.units as usize));
        fold_heads(
            queries,
            asked,
            &mut folded,
            &mut packed,
            &mut steps,
            &mut excess,
            dim,
            head,
            0usize,
            unit,
            group,
            team,
            config,
        );
    }
    sync_cube();
    Folded { words: packed, steps, excess }
}

#[cube]
fn abs(x: f32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) & 0x7fff_ffff)
}

/// Bytes of four channels from `first` on; those past the row's end are 0.
#[cube]
fn four_bytes(
    folded: &mut Shared<[f32]>,
    steps: &mut Shared<[f32]>,
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
fn float_bits(folded: &mut Shared<[f32]>, g: usize, c: usize, #[comptime] config: Config) -> u32 {
    let count = comptime!(2 * config.chunks);
    let inside = c < count;
    let x = folded[g * count + select(inside, c, 0usize)];
    select(inside, u32::reinterpret(x), 0u32)
}

/// Folds `heads` query heads from `first` on; `team` units do it together.
#[cube]
fn fold_heads(
    queries: &[f32],
    asked: &Asked,
    folded: &mut Shared<[f32]>,
    packed: &mut Shared<[u32]>,
    steps: &mut Shared<[f32]>,
    excess: &mut Shared<[i32]>,
    dim: u32,
    head: usize,
    first: usize,
    unit: usize,
    #[comptime] heads: usize,
    #[comptime] team: usize,
    #[comptime] config: Config,
) {
    let count = comptime!(2 * config.chunks);
    let (group, words, parts) = comptime!((config.group, config.words, config.per_word()));
    let numbers = comptime!(config.fold_numbers());
    let mut weighted = Array::<f32>::new(numbers);
    #[unroll]
    for k in 0..numbers {
        let i = min(comptime!(k * team) + unit, comptime!(heads * count - 1));
        let x = queries[(head * group + first + i / count) * dim as usize + asked.channel[k] as usize];
        weighted[k] = x * asked.scale[k];
    }
    #[unroll]
    for k in 0..numbers {
        let i = comptime!(k * team) + unit;
        if i < comptime!(heads * count) {
            folded[first * count + i] = weighted[k];
        }
    }
    sync_team(config);
    if comptime!(config.integer()) {
        find_steps(folded, steps, first, unit, config);
        sync_team(config);
    }
    let mut i = unit;
    while i < comptime!(heads * words * parts) {
        let (g, rest) = (first + i / comptime!(words * parts), i % comptime!(words * parts));
        let (w, part) = (rest / parts, rest % parts);
        packed[(w * group + g) * parts + part] = match comptime!(config.precision) {
            // Word w holds chunks 4w to 4w + 3: the first dimensions of all, then the second ones.
            Codes::Int4 => four_bytes(folded, steps, g, part * config.chunks + 4 * w, w, config),
            Codes::Int8 => four_bytes(folded, steps, g, 4 * w, w, config),
            Codes::F16 => float_bits(folded, g, 2 * w + part, config),
            Codes::F32 => float_bits(folded, g, w, config),
        };
        i += team;
    }
    sync_team(config);
    if comptime!(matches!(config.precision, Codes::Int4)) {
        find_excess(packed, excess, first, unit, config);
    }
}

/// Waits for the units that fold together.
#[cube]
fn sync_team(#[comptime] config: Config) {
    if comptime!(config.plane > 0) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// What the integers of a query head are multiplied with.
#[cube]
fn find_steps(
    folded: &mut Shared<[f32]>,
    steps: &mut Shared<[f32]>,
    first: usize,
    unit: usize,
    #[comptime] config: Config,
) {
    let count = comptime!(2 * config.chunks);
    if comptime!(config.plane > 0) {
        let mut largest = 0.0f32;
        #[unroll]
        for i in 0..comptime!(count.div_ceil(config.plane as usize)) {
            let c = min(comptime!(i * config.plane as usize) + unit, comptime!(count - 1));
            largest = max(largest, abs(folded[first * count + c]));
        }
        largest = plane_max(largest);
        if unit == 0 {
            steps[first] = largest / 127.0f32;
        }
    } else if unit < comptime!(config.group) {
        let mut largest = 0.0f32;
        for c in 0..count {
            largest = max(largest, abs(folded[unit * count + c]));
        }
        steps[unit] = largest / 127.0f32;
    }
}

/// What sums of int4 codes, which are stored without sign, have too much.
#[cube]
fn find_excess(
    packed: &mut Shared<[u32]>,
    excess: &mut Shared<[i32]>,
    first: usize,
    unit: usize,
    #[comptime] config: Config,
) {
    let (group, parts) = comptime!((config.group, config.per_word()));
    let count = comptime!(config.words * parts);
    let eights = i32::cast_from(0x0808_0808u32);
    if comptime!(config.plane > 0) {
        let mut sum = 0i32;
        let mut i = unit;
        while i < count {
            sum = dp4a(i32::cast_from(packed[(i / parts * group + first) * parts + i % parts]), eights, sum);
            i += comptime!(config.plane as usize);
        }
        sum = plane_sum(sum);
        if unit == 0 {
            excess[first] = sum;
        }
    } else if unit < group {
        let mut sum = 0i32;
        for i in 0..count {
            sum = dp4a(i32::cast_from(packed[(i / parts * group + unit) * parts + i % parts]), eights, sum);
        }
        excess[unit] = sum;
    }
}
