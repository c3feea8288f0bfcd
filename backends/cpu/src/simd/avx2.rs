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
            Two(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
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
        unsafe { Two(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { Two(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { Two(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { Two(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { Two(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { Two(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn where_ge(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, bound.0);
            let high = _mm256_cmp_ps::<_CMP_GE_OQ>(x.1, bound.1);
            Two(_mm256_and_ps(low, value.0), _mm256_and_ps(high, value.1))
        }
    }
    #[inline(always)]
    fn at_least(self, x: Self::F, bound: Self::F) -> u32 {
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x.0, bound.0));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x.1, bound.1));
            low.cast_unsigned() | high.cast_unsigned() << 8
        }
    }
    #[inline(always)]
    fn power_of_two(self, biased: Self::F) -> Self::F {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_castps_si256(biased.0), bias);
            let high = _mm256_add_epi32(_mm256_castps_si256(biased.1), bias);
            Two(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
        }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        unsafe {
            let (a, b) = (_mm256_add_ps(a.0, a.1), _mm256_add_ps(b.0, b.1));
            let (c, d) = (_mm256_add_ps(c.0, c.1), _mm256_add_ps(d.0, d.1));
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
    fn largest_of_each(self, x: [Self::F; LANES]) -> Self::F {
        unsafe {
            Two(
                largest_of_eight([x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]]),
                largest_of_eight([x[8], x[9], x[10], x[11], x[12], x[13], x[14], x[15]]),
            )
        }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        let x = unsafe { _mm256_set1_epi32(x) };
        Two(x, x)
    }
    #[inline(always)]
    fn transpose(self, pieces: [&[u8; 16]; LANES]) -> [Self::I; 4] {
        unsafe {
            let mut halves = [[_mm256_setzero_si256(); 4]; 2];
            for (h, half) in halves.iter_mut().enumerate() {
                let mut two = [_mm256_setzero_si256(); 4];
                for i in 0..4 {
                    // Pieces i and i + 4 side by side; then 4 x 4 groups are transposed within 128 bits.
                    let low = _mm_loadu_si128(pieces[8 * h + i].as_ptr().cast());
                    let high = _mm_loadu_si128(pieces[8 * h + i + 4].as_ptr().cast());
                    two[i] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                }
                let [a, b, c, d] = two;
                let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                *half = [
                    _mm256_unpacklo_epi64(ab_low, cd_low),
                    _mm256_unpackhi_epi64(ab_low, cd_low),
                    _mm256_unpacklo_epi64(ab_high, cd_high),
                    _mm256_unpackhi_epi64(ab_high, cd_high),
                ];
            }
            let [low, high] = halves;
            [Two(low[0], high[0]), Two(low[1], high[1]), Two(low[2], high[2]), Two(low[3], high[3])]
        }
    }
    #[inline(always)]
    fn low_nibbles(self, x: Self::I) -> Self::I {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            Two(_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask))
        }
    }
    #[inline(always)]
    fn high_nibbles(self, x: Self::I) -> Self::I {
        unsafe { self.low_nibbles(Two(_mm256_srli_epi32::<4>(x.0), _mm256_srli_epi32::<4>(x.1))) }
    }
    #[inline(always)]
    fn dot4(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        unsafe {
            let query = _mm256_set1_epi32(query);
            Two(pairs(sum.0, codes.0, query), pairs(sum.1, codes.1, query))
        }
    }
    #[inline(always)]
    fn dot4_signed(self, sum: Self::I, codes: Self::I, query: i32) -> Self::I {
        // The sign moves from the code to the query, since one side must be unsigned.
        unsafe {
            let query = _mm256_set1_epi32(query);
            let low = pairs(sum.0, _mm256_abs_epi8(codes.0), _mm256_sign_epi8(query, codes.0));
            let high = pairs(sum.1, _mm256_abs_epi8(codes.1), _mm256_sign_epi8(query, codes.1));
            Two(low, high)
        }
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        unsafe { Two(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        unsafe { Two(_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // A prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// The largest lane of each of eight vectors.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn largest_of_eight(x: [Two<__m256>; 8]) -> __m256 {
    // SAFETY: as the caller vouches.
    unsafe {
        let low = largest_of_four([x[0], x[1], x[2], x[3]]);
        let high = largest_of_four([x[4], x[5], x[6], x[7]]);
        _mm256_max_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
    }
}

/// Both halves hold the largest of theirs of each of four vectors.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn largest_of_four([a, b, c, d]: [Two<__m256>; 4]) -> __m256 {
    // SAFETY: as the caller vouches.
    unsafe {
        let (a, b) = (_mm256_max_ps(a.0, a.1), _mm256_max_ps(b.0, b.1));
        let (c, d) = (_mm256_max_ps(c.0, c.1), _mm256_max_ps(d.0, d.1));
        let ab = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = _mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let (low, high) = (_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
        _mm256_max_ps(low, high)
    }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn pairs(sum: __m256i, codes: __m256i, query: __m256i) -> __m256i {
    // SAFETY: as the caller vouches. Pairs of products fit in 16 bits: 2 * 127 * 127 at most.
    unsafe {
        let pairs = _mm256_maddubs_epi16(codes, query);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}
