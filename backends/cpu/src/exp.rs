//! Exponential functions on vectors.

use crate::simd::{LANES, Simd};

/// `e^x` to within 2 units in the last place for x from -87 to 88; 0 below, clamped above. NaN gives 0.
///
/// Range reduction by Cody and Waite, then a polynomial of degree 6 (coefficients of Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = simd.max(simd.min(x, simd.splat(88.0)), simd.splat(-87.0));
    let rounded = simd.mul_add(clamped, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(rounded, simd.splat(ROUND));
    let r = simd.mul_add(n, simd.splat(-LN2_HIGH), clamped);
    let r = simd.mul_add(n, simd.splat(-LN2_LOW), r);
    let mut p = simd.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add(p, r, simd.splat(c));
    }
    let mantissa = simd.add(simd.mul_add(simd.mul(p, r), r, r), simd.splat(1.0));
    simd.where_ge(x, simd.splat(-87.0), simd.mul(mantissa, simd.power_of_two(rounded)))
}

/// Minimax polynomial of `2^x` on -1/2 ..= 1/2, highest power first; the constant is 1 so that 2^0 is exact.
#[allow(clippy::approx_constant)] // near ln 2, but fitted
const EXP2: [f32; 6] = [1.327_646_7e-3, 9.675_541e-3, 5.550_713_3e-2, 2.402_212e-1, 6.931_47e-1, 1.0];

/// `2^x` to within 4 units in the last place for x from -126 to 126; 2^-126 below. NaN gives 2^-126.
///
/// Cheaper than [`exp`]: what softmax weights need, where x is never above 0 (but for rounding) and the factor `log2 e` is in
/// the scores.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::F) -> S::F {
    // 1.5 * 2^23, as above.
    const ROUND: f32 = 12_582_912.0;
    let clamped = simd.max(x, simd.splat(-126.0));
    let rounded = simd.add(clamped, simd.splat(ROUND));
    let n = simd.sub(rounded, simd.splat(ROUND));
    let r = simd.sub(clamped, n);
    let mut p = simd.splat(EXP2[0]);
    for c in &EXP2[1..] {
        p = simd.mul_add(p, r, simd.splat(*c));
    }
    simd.times_power_of_two(p, n, rounded)
}

/// `cap * tanh(x / cap)` to within `3e-7 * cap`; minus `cap` for minus infinity and NaN.
#[inline(always)]
pub(crate) fn softcap<S: Simd>(simd: S, x: S::F, cap: f32) -> S::F {
    // tanh y = 1 - 2 / (e^2y + 1), in which an e^2y of 0 or near infinity does no harm.
    let mut lanes = [0.0; LANES];
    simd.store(exp(simd, simd.mul(x, simd.splat(2.0 / cap))), &mut lanes);
    for lane in &mut lanes {
        *lane = cap - 2.0 * cap / (*lane + 1.0);
    }
    simd.load(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, available, dispatch};

    const CAP: f32 = 50.0;

    #[inline(always)]
    fn kernel<S: Simd>(simd: S, x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) {
        simd.store(exp(simd, simd.load(x)), &mut out[0]);
        simd.store(exp2(simd, simd.load(x)), &mut out[1]);
        simd.store(softcap(simd, simd.load(x), CAP), &mut out[2]);
        simd.store(simd.exp2_fast(simd.load(x)), &mut out[3]);
    }

    fn all(isa: Isa, x: [f32; LANES]) -> [[f32; LANES]; 4] {
        fn run(isa: Isa, x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) {
            dispatch!(@for isa, [] (x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) [] kernel)
        }
        let mut out = [[f32::NAN; LANES]; 4];
        run(isa, &x, &mut out);
        out
    }

    fn on(isa: Isa, x: [f32; LANES]) -> [f32; LANES] {
        all(isa, x)[0]
    }

    #[test]
    fn powers_of_two() {
        const LEAST: f32 = f32::MIN_POSITIVE;
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            for i in (-126_000..=125_984).step_by(LANES) {
                let x: [f32; LANES] = std::array::from_fn(|lane| (i + lane as i32) as f32 / 1000.0);
                for (x, got) in x.iter().zip(all(isa, x)[1]) {
                    let want = f64::from(*x).exp2();
                    assert!((f64::from(got) / want - 1.0).abs() < 5e-7, "{isa:?} {x}: {got} {want}");
                }
            }
            for (x, want) in [(0.0, 1.0), (-1.0, 0.5), (-200.0, LEAST), (f32::NEG_INFINITY, LEAST), (f32::NAN, LEAST)] {
                assert_eq!(all(isa, [x; LANES])[1], [want; LANES], "{isa:?} {x}");
            }
        }
    }

    #[test]
    fn fast_powers_of_two() {
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            for i in (-126_000..=125_984).step_by(LANES) {
                let x: [f32; LANES] = std::array::from_fn(|lane| (i + lane as i32) as f32 / 1000.0);
                for (x, got) in x.iter().zip(all(isa, x)[3]) {
                    let want = f64::from(*x).exp2();
                    assert!((f64::from(got) / want - 1.0).abs() < 4e-6, "{isa:?} {x}: {got} {want}");
                }
            }
            for x in [-127.5, -200.0, -1e9, f32::MIN, f32::NEG_INFINITY] {
                let [got, ..] = all(isa, [x; LANES])[3];
                assert!((0.0..=f32::MIN_POSITIVE).contains(&got), "{isa:?} {x}: {got}");
            }
        }
    }

    #[test]
    fn as_exact_as_single_precision_allows() {
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            for i in (-870_000..=879_984).step_by(LANES) {
                let x: [f32; LANES] = std::array::from_fn(|lane| (i + lane as i32) as f32 / 10_000.0);
                for (x, got) in x.iter().zip(on(isa, x)) {
                    let want = f64::from(*x).exp();
                    assert!((f64::from(got) / want - 1.0).abs() < 3e-7, "{isa:?} {x}: {got} {want}");
                }
            }
            for x in [-88.0, -1000.0, f32::NEG_INFINITY, f32::NAN] {
                assert_eq!(on(isa, [x; LANES]), [0.0; LANES], "{isa:?} {x}");
            }
            assert!(on(isa, [1000.0; LANES])[0].is_finite());
            assert_eq!(on(isa, [0.0; LANES])[0], 1.0);
        }
    }

    #[test]
    fn scores_are_capped() {
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            for i in (-40_000..=39_984).step_by(LANES) {
                let x: [f32; LANES] = std::array::from_fn(|lane| (i + lane as i32) as f32 / 100.0);
                for (x, got) in x.iter().zip(all(isa, x)[2]) {
                    let want = f64::from(CAP) * (f64::from(*x) / f64::from(CAP)).tanh();
                    assert!((f64::from(got) - want).abs() < 1.5e-5, "{isa:?} {x}: {got} {want}");
                }
            }
            for (x, want) in [(f32::INFINITY, CAP), (f32::NEG_INFINITY, -CAP), (f32::NAN, -CAP)] {
                assert_eq!(all(isa, [x; LANES])[2], [want; LANES], "{isa:?} {x}");
            }
        }
    }
}
