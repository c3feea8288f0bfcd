//! AVX-512 (x86-64-v4): a vector is one register. VNNI adds integer inner products.

use super::{LANES, Simd};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL, with AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// [`Avx512`] and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    /// # Safety
    /// The CPU has what [`Avx512::new`] asks for, and AVX-512 VNNI.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Everything but the integer inner products, which differ.
macro_rules! avx512 {
    ($token:ty, $offset:expr, $dot4:expr, $dot4_signed:expr) => {
        // SAFETY of all blocks: a value of this type exists only where its constructor's caller vouched for the
        // instructions; loads and stores go through references to arrays of the full width.
        impl Simd for $token {
            type F = __m512;
            type I = __m512i;
            const WIDE: bool = true;
            const SIGNED_OFFSET: i32 = $offset;

            #[inline(always)]
            fn splat(self, x: f32) -> __m512 {
                unsafe { _mm512_set1_ps(x) }
            }
            #[inline(always)]
            fn load(self, from: &[f32; LANES]) -> __m512 {
                unsafe { _mm512_loadu_ps(from.as_ptr()) }
            }
            #[inline(always)]
            fn load_half(self, from: &[[u8; 2]; LANES]) -> __m512 {
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
            }
            #[inline(always)]
            fn store(self, x: __m512, to: &mut [f32; LANES]) {
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
            }
            #[inline(always)]
            fn add(self, a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            fn sub(self, a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_sub_ps(a, b) }
            }
            #[inline(always)]
            fn mul(self, a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_mul_ps(a, b) }
            }
            #[inline(always)]
            fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            fn max(self, a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_max_ps(a, b) }
            }
            #[inline(always)]
            fn min(self, a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_min_ps(a, b) }
            }
            #[inline(always)]
            fn where_ge(self, x: __m512, bound: __m512, value: __m512) -> __m512 {
                unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound), value) }
            }
            #[inline(always)]
            fn at_least(self, x: __m512, bound: __m512) -> u32 {
                unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound)) }
            }
            #[inline(always)]
            fn power_of_two(self, biased: __m512) -> __m512 {
                unsafe {
                    let exponent = _mm512_add_epi32(_mm512_castps_si512(biased), _mm512_set1_epi32(127));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
                }
            }
            #[inline(always)]
            fn times_power_of_two(self, x: __m512, n: __m512, _biased: __m512) -> __m512 {
                unsafe { _mm512_scalef_ps(x, n) }
            }
            #[inline(always)]
            fn exp2_fast(self, x: __m512) -> __m512 {
                // Minimax polynomial of 2^x on 0 ..= 1; the scale is 2 to the floor of x.
                const EXP2: [f32; 5] = [1.353_416_8e-2, 5.201_146e-2, 2.414_427_6e-1, 6.930_038_3e-1, 1.000_002_6];
                unsafe {
                    let fraction = _mm512_reduce_ps::<0b1001>(x);
                    let mut p = _mm512_set1_ps(EXP2[0]);
                    for c in &EXP2[1..] {
                        p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(*c));
                    }
                    _mm512_scalef_ps(p, x)
                }
            }
            #[inline(always)]
            fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
                unsafe {
                    // Pairs of lanes, then pairs of those: every 128 bits hold a part of all four sums.
                    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                    let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
                    let high = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
                    let parts = _mm512_add_ps(low, high);
                    let half = _mm256_add_ps(_mm512_castps512_ps256(parts), _mm512_extractf32x8_ps::<1>(parts));
                    let sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
                    let mut out = [0.0; 4];
                    _mm_storeu_ps(out.as_mut_ptr(), sums);
                    out
                }
            }
            #[inline(always)]
            fn largest_of_each(self, x: [__m512; LANES]) -> __m512 {
                // SAFETY: as for all blocks here.
                unsafe {
                    let a = largest_of_four([x[0], x[1], x[2], x[3]]);
                    let b = largest_of_four([x[4], x[5], x[6], x[7]]);
                    let c = largest_of_four([x[8], x[9], x[10], x[11]]);
                    let d = largest_of_four([x[12], x[13], x[14], x[15]]);
                    // Quarters of two vectors, then halves of both pairs.
                    let ab = _mm512_max_ps(
                        _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                        _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                    );
                    let cd = _mm512_max_ps(
                        _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                        _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
                    );
                    _mm512_max_ps(
                        _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                        _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
                    )
                }
            }

            #[inline(always)]
            fn splat_i(self, x: i32) -> __m512i {
                unsafe { _mm512_set1_epi32(x) }
            }
            #[inline(always)]
            fn transpose(self, pieces: [&[u8; 16]; LANES]) -> [__m512i; 4] {
                unsafe {
                    let mut four = [_mm512_setzero_si512(); 4];
                    for i in 0..4 {
                        // Pieces i, i + 4, i + 8, i + 12 side by side; then 4 x 4 groups are transposed within 128 bits.
                        let piece = _mm512_castsi128_si512(_mm_loadu_si128(pieces[i].as_ptr().cast()));
                        let piece = _mm512_inserti32x4::<1>(piece, _mm_loadu_si128(pieces[i + 4].as_ptr().cast()));
                        let piece = _mm512_inserti32x4::<2>(piece, _mm_loadu_si128(pieces[i + 8].as_ptr().cast()));
                        four[i] = _mm512_inserti32x4::<3>(piece, _mm_loadu_si128(pieces[i + 12].as_ptr().cast()));
                    }
                    let [a, b, c, d] = four;
                    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                    [
                        _mm512_unpacklo_epi64(ab_low, cd_low),
                        _mm512_unpackhi_epi64(ab_low, cd_low),
                        _mm512_unpacklo_epi64(ab_high, cd_high),
                        _mm512_unpackhi_epi64(ab_high, cd_high),
                    ]
                }
            }
            #[inline(always)]
            fn transpose_rows(self, rows: &[[u8; 16]; LANES]) -> [__m512i; 4] {
                // SAFETY: as for all blocks here.
                unsafe { rows_of_16_bytes(bytemuck::cast_ref(rows)) }
            }
            #[inline(always)]
            fn low_nibbles(self, x: __m512i) -> __m512i {
                unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
            }
            #[inline(always)]
            fn high_nibbles(self, x: __m512i) -> __m512i {
                unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(x), _mm512_set1_epi8(15)) }
            }
            #[inline(always)]
            fn dot4(self, sum: __m512i, codes: __m512i, query: i32) -> __m512i {
                unsafe { $dot4(sum, codes, query) }
            }
            #[inline(always)]
            fn dot4_signed(self, sum: __m512i, codes: __m512i, query: i32) -> __m512i {
                unsafe { $dot4_signed(sum, codes, query) }
            }
            #[inline(always)]
            fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
                unsafe { _mm512_add_epi32(a, b) }
            }
            #[inline(always)]
            fn to_float(self, x: __m512i) -> __m512 {
                unsafe { _mm512_cvtepi32_ps(x) }
            }
            #[inline(always)]
            fn prefetch<T>(self, at: *const T) {
                // A prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
        }
    };
}

avx512!(Avx512, 0, pairs, signed_pairs);
avx512!(Avx512Vnni, 128, vnni, vnni_signed);

/// Every 128 bits hold the largest of theirs of each of four vectors.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn largest_of_four([a, b, c, d]: [__m512; 4]) -> __m512 {
    // SAFETY: as the caller vouches.
    unsafe {
        let ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (low, high) = (_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
        _mm512_max_ps(low, high)
    }
}

/// Sixteen rows of sixteen bytes, four to a vector: vector k holds their words k.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn rows_of_16_bytes(rows: &[[u8; 64]; 4]) -> [__m512i; 4] {
    // SAFETY: as the caller vouches; loads are of the arrays' size.
    unsafe {
        let [a, b, c, d] = rows.each_ref().map(|rows| rows.as_ptr().cast());
        let (a, b) = (_mm512_loadu_si512(a), _mm512_loadu_si512(b));
        let (c, d) = (_mm512_loadu_si512(c), _mm512_loadu_si512(d));
        // Words 0 of eight rows and words 1, then words 2 and words 3.
        let first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        let second = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
        let low = [_mm512_permutex2var_epi32(a, first, b), _mm512_permutex2var_epi32(a, second, b)];
        let high = [_mm512_permutex2var_epi32(c, first, d), _mm512_permutex2var_epi32(c, second, d)];
        [
            _mm512_shuffle_i32x4::<0b01_00_01_00>(low[0], high[0]),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(low[0], high[0]),
            _mm512_shuffle_i32x4::<0b01_00_01_00>(low[1], high[1]),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(low[1], high[1]),
        ]
    }
}

/// # Safety
/// AVX-512 BW.
#[inline(always)]
unsafe fn pairs(sum: __m512i, codes: __m512i, query: i32) -> __m512i {
    // SAFETY: as the caller vouches. Pairs of products fit in 16 bits: 2 * 127 * 127 at most.
    unsafe {
        let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi32(query));
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

/// # Safety
/// AVX-512 BW.
#[inline(always)]
unsafe fn signed_pairs(sum: __m512i, codes: __m512i, query: i32) -> __m512i {
    // SAFETY: as the caller vouches. The sign moves from the code to the query, since one side must be unsigned.
    unsafe {
        let negative = _mm512_movepi8_mask(codes);
        let query = _mm512_set1_epi32(query);
        let query = _mm512_mask_sub_epi8(query, negative, _mm512_setzero_si512(), query);
        let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(codes), query);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

/// # Safety
/// AVX-512 VNNI.
#[inline(always)]
unsafe fn vnni(sum: __m512i, codes: __m512i, query: i32) -> __m512i {
    // SAFETY: as the caller vouches.
    unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(query)) }
}

/// # Safety
/// AVX-512 VNNI.
#[inline(always)]
unsafe fn vnni_signed(sum: __m512i, codes: __m512i, query: i32) -> __m512i {
    // SAFETY: as the caller vouches. Flipping the sign bit adds 128 to a signed byte and makes it unsigned.
    unsafe { _mm512_dpbusd_epi32(sum, _mm512_xor_si512(codes, _mm512_set1_epi8(-128)), _mm512_set1_epi32(query)) }
}
