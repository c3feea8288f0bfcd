//! What units of a cube find out together: through the exchange of a plane where the device has it, through shared
//! memory elsewhere.

use cubecl::prelude::*;

/// How numbers of units become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reduce {
    /// The largest.
    Max,
    /// The sum.
    Sum,
}

/// Each of `values` reduced over all units of the cube, for every unit. `scratch` holds [`scratch_len`] numbers.
#[cube]
pub(crate) fn cube_reduce(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] reduce: Reduce,
    #[comptime] count: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let rows = comptime!(units.checked_div(plane).unwrap_or(units) as usize);
    if comptime!(plane > 0) {
        #[unroll]
        for i in 0..count {
            values[i] = if comptime!(reduce == Reduce::Max) { plane_max(values[i]) } else { plane_sum(values[i]) };
        }
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for i in 0..count {
                scratch[(UNIT_POS / plane) as usize * count + i] = values[i];
            }
        }
    } else {
        #[unroll]
        for i in 0..count {
            scratch[UNIT_POS as usize * count + i] = values[i];
        }
    }
    sync_cube();
    #[unroll]
    for i in 0..count {
        values[i] = scratch[i];
    }
    for row in 1..rows {
        #[unroll]
        for i in 0..count {
            let other = scratch[row * count + i];
            values[i] = if comptime!(reduce == Reduce::Max) { max(values[i], other) } else { values[i] + other };
        }
    }
    sync_cube();
}

/// Numbers of scratch that [`cube_reduce`] needs.
pub(crate) fn scratch_len(count: usize, units: u32, plane: u32) -> usize {
    count * units.checked_div(plane).unwrap_or(units) as usize
}
