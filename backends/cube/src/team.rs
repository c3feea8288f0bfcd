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

#[cube]
fn both(a: f32, b: f32, #[comptime] reduce: Reduce) -> f32 {
    if comptime!(reduce == Reduce::Max) { max(a, b) } else { a + b }
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
        if (UNIT_POS % plane) == 0 {
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
            values[i] = both(values[i], scratch[row * count + i], reduce);
        }
    }
    sync_cube();
}

/// Numbers of scratch that [`cube_reduce`] needs.
pub(crate) fn scratch_len(count: usize, units: u32, plane: u32) -> usize {
    count * units.checked_div(plane).unwrap_or(units) as usize
}

/// How `count` numbers of each of `lanes` units are brought together by [`exchange`]; both are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Exchange {
    pub count: usize,
    pub lanes: usize,
}

impl Exchange {
    const fn halvings(self) -> u32 {
        let (count, lanes) = (self.count.ilog2(), self.lanes.ilog2());
        if count < lanes { count } else { lanes }
    }

    const fn further(self) -> u32 {
        self.lanes.ilog2() - self.halvings()
    }

    /// Results that a unit has in the end.
    pub const fn left(self) -> usize {
        self.count >> self.halvings()
    }
}

/// The numbers of `lanes` neighbouring units of a plane, each brought together with the others of its index: unit `lane` has
/// the results from [`exchange_first`] on, [`Exchange::left`] of them.
///
/// With each exchange a unit gives half of its numbers away and gets the other half's rest, until it has its own only.
#[cube]
pub(crate) fn exchange(values: &mut Array<f32>, lane: usize, #[comptime] reduce: Reduce, #[comptime] shape: Exchange) {
    let (count, lanes, halvings) = comptime!((shape.count, shape.lanes, shape.halvings()));
    #[unroll]
    for s in 0..halvings {
        let half = comptime!(count >> (s + 1));
        let offset = comptime!(lanes >> (s + 1));
        let upper = (lane & offset) != 0;
        #[unroll]
        for i in 0..half {
            let kept = select(upper, values[i + half], values[i]);
            let given = select(upper, values[i], values[i + half]);
            values[i] = both(kept, plane_shuffle_xor(given, comptime!(offset as u32)), reduce);
        }
    }
    #[unroll]
    for s in 0..comptime!(shape.further()) {
        let offset = comptime!(lanes >> (halvings + s + 1));
        #[unroll]
        for i in 0..comptime!(shape.left()) {
            values[i] = both(values[i], plane_shuffle_xor(values[i], comptime!(offset as u32)), reduce);
        }
    }
}

/// Whether the unit is the first of those that have the same results.
#[cube]
pub(crate) fn exchange_owner(lane: usize, #[comptime] shape: Exchange) -> bool {
    (lane & comptime!((1usize << shape.further()) - 1)) == 0
}

/// The first result that a unit has: the upper bits of its lane say which.
#[cube]
pub(crate) fn exchange_first(lane: usize, #[comptime] shape: Exchange) -> usize {
    (lane >> comptime!(shape.further() as usize)) * comptime!(shape.left())
}

/// What [`cube_scan`] finds.
#[derive(CubeType)]
pub(crate) struct Sums {
    /// Over the units before this one.
    pub before: u32,
    /// Over all units.
    pub all: u32,
}

/// Sums of `value`. `scratch` holds `units + 1` numbers.
#[cube]
pub(crate) fn cube_scan(
    value: u32,
    scratch: &mut Shared<[u32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> Sums {
    let mut sums = Sums { before: 0u32.runtime(), all: 0u32.runtime() };
    if comptime!(plane > 0) {
        let within = plane_inclusive_sum(value);
        if (UNIT_POS % plane) == comptime!(plane - 1) {
            scratch[(UNIT_POS / plane) as usize] = within;
        }
        sync_cube();
        let planes = comptime!(units / plane);
        // Every plane has a unit for the sum of each plane.
        let sum = select((UNIT_POS % plane) < planes, scratch[min(UNIT_POS % plane, planes - 1) as usize], 0u32);
        sums.before = plane_sum(select((UNIT_POS % plane) < UNIT_POS / plane, sum, 0u32)) + within - value;
        if UNIT_POS == comptime!(units - 1) {
            scratch[units as usize] = sums.before + value;
        }
    } else {
        scratch[UNIT_POS as usize] = value;
        sync_cube();
        if UNIT_POS == 0 {
            let mut all = 0u32.runtime();
            for i in 0..units {
                let here = scratch[i as usize];
                scratch[i as usize] = all;
                all += here;
            }
            scratch[units as usize] = all;
        }
        sync_cube();
        sums.before = scratch[UNIT_POS as usize];
    }
    // Others decide by it where they wait.
    sums.all = workgroup_uniform_load(&scratch[units as usize]);
    sync_cube();
    sums
}
