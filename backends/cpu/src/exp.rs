//! The exponential function on vectors.

use crate::simd::Simd;

/// `e^x` to within 2 units in the last place for x from -87 to 88; 0 below, clamped above. NaN gives 0.
///
/// Range reduction by Cody and Waite, then a polynomial of degree 6 (coefficients of Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let splat = |x: f32| simd.splat(x);
    let clamped = simd.max(simd.min(x, splat(88.0)), splat(-87.0));
    let rounded = simd.mul_add(clamped, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub(rounded, splat(ROUND));
    let r = simd.mul_add(n, splat(-LN2_HIGH), clamped);
    let r = simd.mul_add(n, splat(-LN2_LOW), r);
    let mut p = splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add(p, r, splat(c));
    }
    let mantissa = simd.add(simd.mul_add(simd.mul(p, r), r, r), splat(1.0));
    simd.where_ge(x, splat(-87.0), simd.mul(mantissa, simd.power_of_two(rounded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, available, dispatch};
    use crate::simd::LANES;

    fn kernel<S: Simd>(simd: S, x: &[f32; LANES], out: &mut [f32; LANES]) {
        simd.store(exp(simd, simd.load(x)), out);
    }

    fn on(isa: Isa, x: [f32; LANES]) -> [f32; LANES] {
        fn run(isa: Isa, x: &[f32; LANES], out: &mut [f32; LANES]) {
            dispatch!(@for isa, [] (x: &[f32; LANES], out: &mut [f32; LANES]) [] kernel)
        }
        let mut out = [f32::NAN; LANES];
        run(isa, &x, &mut out);
        out
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
}
