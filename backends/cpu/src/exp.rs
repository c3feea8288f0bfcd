//! The exponential function, written so that compilers vectorize it.

use crate::isa::fma;

/// `e^x` to within 2 units in the last place for x from -87 to 88; 0 below, clamped above. NaN gives 0.
///
/// Range reduction by Cody and Waite, then a polynomial of degree 6 (coefficients of Cephes `expf`).
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < 88.0 { x } else { 88.0 };
    let clamped = if clamped > -87.0 { clamped } else { -87.0 };
    let rounded = fma::<FMA>(clamped, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, r, c);
    }
    let mantissa = fma::<FMA>(p * r, r, r) + 1.0;
    let power = f32::from_bits((rounded.to_bits().wrapping_add(127)) << 23);
    let value = mantissa * power;
    if x >= -87.0 { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_exact_as_single_precision_allows() {
        for i in -870_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let want = f64::from(x).exp();
            for got in [exp::<false>(x), exp::<true>(x)] {
                assert!((f64::from(got) / want - 1.0).abs() < 3e-7, "{x}: {got} {want}");
            }
        }
        for x in [-88.0, -1000.0, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp::<true>(x), 0.0, "{x}");
        }
        assert!(exp::<true>(1000.0).is_finite());
        assert_eq!(exp::<true>(0.0), 1.0);
    }
}
