//! Scores of a tile of rows, and the weights that they become.

use super::{Config, NOTHING};
use crate::team::{Exchange, Reduce, exchange, exchange_first, exchange_owner};
use cubecl::prelude::*;

/// Waits for the other units of the team.
#[cube]
pub(super) fn sync_team(#[comptime] config: Config) {
    if comptime!(config.plane > 0) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// Adds the parts of scores that the units of a row have, and leaves the scores of a batch in the team's weights.
#[cube]
pub(super) fn add_up(
    parts: &mut Array<f32>,
    weights: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    team_weights: usize,
    #[comptime] batch: usize,
    slot: usize,
    lane: usize,
    unit: usize,
    #[comptime] config: Config,
) {
    let (rows, padded, lanes, slots) = comptime!((config.rows, config.padded, config.lanes, config.slots()));
    let count = comptime!(rows * padded);
    let first = comptime!(batch * rows * slots);
    if comptime!(config.plane > 0) {
        let shape = comptime!(Exchange { count, lanes });
        exchange(parts, lane, Reduce::Sum, shape);
        if exchange_owner(lane, shape) {
            #[unroll]
            for i in 0..comptime!(shape.left()) {
                let at = exchange_first(lane, shape) + i;
                let (row, g) = (at / padded, at % padded);
                weights[team_weights + (first + row * slots + slot) * padded + g] = parts[i];
            }
        }
    } else {
        #[unroll]
        for i in 0..count {
            scratch[unit * count + i] = parts[i];
        }
        sync_cube();
        let mut i = unit;
        while i < comptime!(slots * count) {
            let (s, at) = (i / count, i % count);
            let mut sum = 0.0f32;
            for l in 0..lanes {
                sum += scratch[(s * lanes + l) * count + at];
            }
            let (row, g) = (at / padded, at % padded);
            weights[team_weights + (first + row * slots + s) * padded + g] = sum;
            i += comptime!(config.team);
        }
        sync_cube();
    }
}

/// Scores of the tile to weights relative to the largest score so far; what was summed before is scaled to it.
#[cube]
pub(super) fn weigh(
    weights: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    largest: &mut Array<f32>,
    total: &mut Array<f32>,
    sums: &mut Array<f32>,
    team_weights: usize,
    unit: usize,
    first: u32,
    stop: u32,
    #[comptime] numbers: usize,
    #[comptime] config: Config,
) {
    let (group, padded, tile, team) = comptime!((config.group, config.padded, config.tile(), config.team));
    let per_unit = comptime!(tile.div_ceil(team));
    let mut scores = Array::<f32>::new(comptime!(group * per_unit));
    let mut top = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        top[g] = NOTHING;
        #[unroll]
        for p in 0..per_unit {
            let row = unit + comptime!(p * team);
            let valid = row < tile && first + (row as u32) < stop;
            let at = team_weights + select(row < tile, row, 0usize) * padded + g;
            let score = select(valid, weights[at], NOTHING);
            scores[g * per_unit + p] = score;
            top[g] = max(top[g], score);
        }
    }
    if comptime!(config.plane > 0) {
        #[unroll]
        for g in 0..group {
            top[g] = plane_max(top[g]);
        }
    } else {
        #[unroll]
        for g in 0..group {
            scratch[unit * group + g] = top[g];
        }
        sync_cube();
        for u in 0..team {
            #[unroll]
            for g in 0..group {
                top[g] = max(top[g], scratch[u * group + g]);
            }
        }
        sync_cube();
    }
    #[unroll]
    for g in 0..group {
        let most = max(largest[g], top[g]);
        let keep = (largest[g] - most).exp();
        largest[g] = most;
        total[g] *= keep;
        #[unroll]
        for i in 0..numbers {
            sums[g * numbers + i] *= keep;
        }
        #[unroll]
        for p in 0..per_unit {
            let row = unit + comptime!(p * team);
            let valid = row < tile && first + (row as u32) < stop;
            let weight = select(valid, (scores[g * per_unit + p] - most).exp(), 0.0f32);
            total[g] += weight;
            if row < tile {
                weights[team_weights + row * padded + g] = weight;
            }
        }
    }
}
