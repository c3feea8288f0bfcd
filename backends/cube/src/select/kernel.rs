//! What the device runs.

use super::narrow::{Bar, Pool, collect, narrow};
use super::{BINS, Config, Importances, Over};
use crate::length::tokens;
use cubecl::prelude::*;

/// The positions of a list's best tokens.
#[cube(launch_unchecked)]
pub(super) fn select_kernel(
    values: &[f32],
    maxima: &[f32],
    length: &[u32],
    positions: &mut [u32],
    most_tokens: u32,
    stride: u32,
    span_stride: u32,
    budget: u32,
    sinks: u32,
    recent: u32,
    #[comptime] config: Config,
) {
    let list = CUBE_POS_X as usize;
    let len = tokens(length, most_tokens, config.device_len);
    let importances = Importances {
        first_token: list * stride as usize,
        first_span: list * span_stride as usize,
        len,
        sinks,
        recent_from: len - recent,
    };
    let mut pool = Pool {
        keys: Shared::<[u32]>::new_slice(config.candidates),
        places: Shared::<[u32]>::new_slice(config.candidates),
        list: Shared::<[u32]>::new_slice(config.listed),
        bins: Shared::<[Atomic<u32>]>::new_slice(BINS),
        state: Shared::<[u32]>::new_slice(comptime!(config.units as usize + 8)),
        ends: Shared::<[Atomic<u32>]>::new_slice(2usize),
    };
    // The guaranteed ones come first.
    let out = list * budget as usize;
    let forced = sinks + recent;
    let mut i = UNIT_POS;
    while i < forced {
        positions[out + i as usize] = select(i < sinks, i, len - recent + i - sinks);
        i += comptime!(config.units);
    }
    let out = out + forced as usize;
    let wanted = budget - forced;

    if wanted > 0 {
        let mut candidates = 0u32.runtime();
        if comptime!(config.quick) {
            let chunk = comptime!(config.spans.chunk() as u32);
            let spans = (len + (chunk - 1)) / chunk * comptime!(config.spans.of_chunk() as u32);
            // Each of so many spans has a token that reaches the bar, and of these tokens at most the guaranteed ones are
            // taken already.
            let bar =
                narrow(&mut pool, values, maxima, &importances, spans, budget, budget / 8, 0u32, Over::Spans, config);
            let room = comptime!(config.listed as u32);
            let listed = collect(
                &mut pool,
                positions,
                values,
                maxima,
                &importances,
                spans,
                bar.key,
                0usize,
                room,
                Over::Spans,
                config,
            );
            if listed > 0 && listed <= room {
                let count = listed * comptime!(config.spans.tokens() as u32);
                let room = comptime!(config.candidates as u32);
                candidates = collect(
                    &mut pool,
                    positions,
                    values,
                    maxima,
                    &importances,
                    count,
                    bar.key,
                    0usize,
                    room,
                    Over::Listed,
                    config,
                );
            }
        }
        if candidates >= wanted && candidates <= comptime!(config.candidates as u32) {
            pick(&mut pool, positions, values, maxima, &importances, candidates, wanted, out, Over::Pool, config);
        } else {
            pick(&mut pool, positions, values, maxima, &importances, len, wanted, out, Over::Row, config);
        }
    }
}

/// Writes the `wanted` best of `count`; of equals the lowest positions.
#[cube]
fn pick(
    pool: &mut Pool,
    positions: &mut [u32],
    values: &[f32],
    maxima: &[f32],
    importances: &Importances,
    count: u32,
    wanted: u32,
    out: usize,
    #[comptime] over: Over,
    #[comptime] config: Config,
) {
    let bar = narrow(pool, values, maxima, importances, count, wanted, 0u32, 0u32, over, config);
    if UNIT_POS == 0 {
        pool.state[0usize] = select(bar.content == bar.left, 0u32, 1u32);
        pool.state[1usize] = bar.key;
        pool.state[2usize] = 0u32;
    }
    if workgroup_uniform_load(&pool.state[0usize]) == 1 {
        let ties = comptime!(if matches!(over, Over::Pool) { Over::PoolTies } else { Over::RowTies });
        let last: Bar = narrow(pool, values, maxima, importances, count, bar.left, 0u32, bar.key, ties, config);
        if UNIT_POS == 0 {
            pool.state[1usize] = bar.key;
            pool.state[2usize] = last.key;
        }
    }
    sync_cube();
    // `collect` uses the state again.
    if UNIT_POS < 2 {
        pool.ends[UNIT_POS as usize].store(pool.state[(UNIT_POS + 1) as usize]);
    }
    sync_cube();
    collect(pool, positions, values, maxima, importances, count, 0u32, out, wanted, over, config);
}
