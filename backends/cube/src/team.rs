//! What units of a cube find out together: through the exchange of a plane where the device has it, through shared
//! memory elsewhere.

use cubecl::prelude::*;

/// The largest of each of `values` over all units of the cube, for every unit. `scratch` holds `values` numbers per unit
/// (per plane, where there are planes).
#[cube]
pub(crate) fn cube_max(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] count: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let rows = comptime!(units.checked_div(plane).unwrap_or(units) as usize);
    if comptime!(plane > 0) {
        #[unroll]
        for i in 0..count {
            values[i] = plane_max(values[i]);
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
            values[i] = max(values[i], scratch[row * count + i]);
        }
    }
    sync_cube();
}

/// The sum of each of `values` over all units of the cube, for every unit; otherwise as [`cube_max`].
#[cube]
pub(crate) fn cube_sum(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] count: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let rows = comptime!(units.checked_div(plane).unwrap_or(units) as usize);
    if comptime!(plane > 0) {
        #[unroll]
        for i in 0..count {
            values[i] = plane_sum(values[i]);
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
            values[i] += scratch[row * count + i];
        }
    }
    sync_cube();
}

/// Numbers of scratch that [`cube_max`] and [`cube_sum`] need.
pub(crate) fn scratch_len(count: usize, units: u32, plane: u32) -> usize {
    count * units.checked_div(plane).unwrap_or(units) as usize
}
