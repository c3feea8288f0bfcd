//! AVX2, FMA and F16C (x86-64-v3): a vector is two registers.

use super::{LANES, Simd};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Two registers as one vector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Two<T>(T, T);

impl<T: Copy> Two<T> {
    #[inline(always)]
    fn zip<U>(self, other: Self, f: impl Fn(T, T) -> U) -> Two<U> {
        Two(f(self.0, other.0), f(self.1, other.1))
    }
    #[inline(always)]
    fn map<U>(self, f: impl Fn(T) -> U) -> Two<U> {
        Two(f(self.0), f(self.1))
    }
}

// SAFETY of all blocks: a value of this type exists only where its constructor's caller vouched for the instructions; loads
// and stores go through references to arrays of the full width.
impl Simd for Avx2 {
    type F = Two<__m256>;
    type I = Two<__m256i>;
    const WIDE: bool = false;
    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        let x = unsafe { _mm256_set1_ps(x) };
        Two(x, x)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        unsafe { Two(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn load_half(self, from: &[[u8; 2]; LANES]) -> Self::F {
        unsafe {
            let from = from.as_ptr();
            let half = |at| _mm256_cvtph_ps(_mm_loadu_si128(from.add(at).cast()));
            Two(half(0), half(8))
        }
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        a.zip(b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        a.zip(b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        a.zip(b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { Two(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        a.zip(b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        a.zip(b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    fn where_ge(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        x.zip(bound, |x, bound| unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(x, bound) })
            .zip(value, |mask, value| unsafe { _mm256_and_ps(mask, value) })
    }
    #[inline(always)]
    fn power_of_two(self, biased: Self::F) -> Self::F {
        biased.map(|biased| unsafe {
            let exponent = _mm256_add_epi32(_mm256_castps_si256(biased), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] = [a, b, c, d].map(|x| _mm256_add_ps(x.0, x.1));
            // Pairs of lanes, then pairs of those: every 128 bits hold a part of all four sums.
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            let parts = _mm256_add_ps(low, high);
            let sums = _mm_add_ps(_mm256_castps256_ps128(parts), _mm256_extractf128_ps::<1>(parts));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        let x = unsafe { _mm256_set1_epi32(x) };
        Two(x, x)
    }
    #[inline(always)]
    fn transpose<'a>(self, piece: impl Fn(usize) -> &'a [u8; 16]) -> [Self::I; 4] {
        let half = |first: usize| unsafe {
            let load = |r: usize| _mm_loadu_si128(piece(r).as_ptr().cast());
            // Pieces i and i + 4 side by side; then 4 x 4 groups are transposed within 128 bits.
            let two =
                |i: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(first + i)), load(first + i + 4));
            let (a, b, c, d) = (two(0), two(1), two(2), two(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        };
        let (low, high) = (half(0), half(8));
        std::array::from_fn(|k| Two(low[k], high[k]))
    }
    #[inline(always)]
    fn low_nibbles(self, x: Self::I) -> Self::I {
        x.map(|x| unsafe { _mm256_and_si256(x, _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn high_nibbles(self, x: Self::I) -> Self::I {
        x.map(|x| unsafe { _mm256_and_si256(_mm256_srli_epi32::<4>(x), _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn dot4(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        // Pairs of products fit in 16 bits: 2 * 127 * 127 at most.
        sum.zip(codes, |sum, codes| unsafe {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(query));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn dot4_signed(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        // The sign moves from the code to the query, since one side must be unsigned.
        sum.zip(codes, |sum, codes| unsafe {
            let query = _mm256_sign_epi8(_mm256_set1_epi32(query), codes);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), query);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        x.map(|x| unsafe { _mm256_cvtepi32_ps(x) })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // A prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
