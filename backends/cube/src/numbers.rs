//! Numbers in 32-bit words: what a cache holds, read and written without 16-bit types.

use cubecl::prelude::*;

/// How a cache stores its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
}

impl Format {
    /// Numbers in a word.
    pub const fn per_word(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::F16 | Format::Bf16 => 2,
        }
    }
}

/// The half in the low 16 bits of `bits`.
#[cube]
pub(crate) fn half_to_f32(bits: u32) -> f32 {
    let magnitude = bits & 0x7fff;
    // Subnormal halves are multiples of 2^-24; normal ones need another bias, 112 more; the rest is infinite or no number.
    let tiny = f32::cast_from(magnitude) * 5.960_464_5e-8f32;
    let shifted = magnitude << 13;
    let normal = select(magnitude < 0x7c00, shifted + 0x3800_0000, shifted | 0x7f80_0000);
    let value = select(magnitude < 0x400, u32::reinterpret(tiny), normal);
    f32::reinterpret(value | ((bits & 0x8000) << 16))
}

/// The lower or upper half of a word.
#[cube]
pub(crate) fn half_at(word: u32, upper: bool, #[comptime] native_half: bool) -> f32 {
    if comptime!(native_half) {
        let halves = Vector::<half::f16, Const<2>>::reinterpret(word);
        select(upper, f32::cast_from(halves.extract(1usize)), f32::cast_from(halves.extract(0usize)))
    } else {
        half_to_f32(select(upper, word >> 16, word & 0xffff))
    }
}

/// `x` rounded to a half, ties to even.
#[cube]
pub(crate) fn f32_to_half(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5, whose last bit is worth 2^-24, rounds a small number to the multiple that a subnormal half is.
    let tiny = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - 0x3f00_0000;
    let odd = (magnitude >> 13) & 1;
    let normal = (magnitude - 0x3800_0000 + 0xfff + odd) >> 13;
    let finite = select(magnitude < 0x3880_0000, tiny, min(normal, 0x7c00));
    let half = select(magnitude > 0x7f80_0000, 0x7e00, finite);
    half | ((bits >> 16) & 0x8000)
}

/// `x` rounded to 16 bits of exponent and mantissa, ties to even.
#[cube]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    select((bits & 0x7fff_ffff) > 0x7f80_0000, 0x7fc0, rounded)
}

/// Number `i` of a word.
#[cube]
pub(crate) fn number(
    word: u32,
    #[comptime] i: usize,
    #[comptime] format: Format,
    #[comptime] native_half: bool,
) -> f32 {
    match comptime!(format) {
        Format::F32 => f32::reinterpret(word),
        Format::Bf16 => {
            if comptime!(i == 0) {
                f32::reinterpret(word << 16)
            } else {
                f32::reinterpret(word & 0xffff_0000)
            }
        }
        Format::F16 => {
            if comptime!(native_half) {
                let halves = Vector::<half::f16, Const<2>>::reinterpret(word);
                f32::cast_from(halves.extract(i))
            } else if comptime!(i == 0) {
                half_to_f32(word & 0xffff)
            } else {
                half_to_f32(word >> 16)
            }
        }
    }
}

/// The word of two numbers that follow each other; of `first` alone in [`Format::F32`].
#[cube]
pub(crate) fn word(first: f32, second: f32, #[comptime] format: Format) -> u32 {
    match comptime!(format) {
        Format::F32 => u32::reinterpret(first),
        Format::F16 => f32_to_half(first) | (f32_to_half(second) << 16),
        Format::Bf16 => f32_to_bf16(first) | (f32_to_bf16(second) << 16),
    }
}

/// The word of two halves, the largest finite ones instead of larger numbers.
#[cube]
pub(crate) fn halves(first: f32, second: f32, #[comptime] native_half: bool) -> u32 {
    let first = min(max(first, -65504.0f32), 65504.0f32);
    let second = min(max(second, -65504.0f32), 65504.0f32);
    if comptime!(native_half) {
        let mut both = Vector::<half::f16, Const<2>>::empty();
        both.insert(0usize, half::f16::cast_from(first));
        both.insert(1usize, half::f16::cast_from(second));
        u32::reinterpret(both)
    } else {
        f32_to_half(first) | (f32_to_half(second) << 16)
    }
}

/// Maps the order of floats to that of unsigned integers; the zeros are equal, what is no number comes last.
#[cube]
pub(crate) fn order_key(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let negative = (bits >> 31) == 1;
    let key = select(negative, !bits, bits | 0x8000_0000);
    let magnitude = bits & 0x7fff_ffff;
    let number = select(magnitude == 0, 0x8000_0000, key);
    select(magnitude > 0x7f80_0000, 0, number)
}
