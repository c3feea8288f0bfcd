//! Numbers of a file in the format that a model is kept in, slice by slice: converted one at a time, the weights of a large
//! model would take minutes.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Numbers that are converted together: on the stack and in the first cache.
const BATCH: usize = 1024;

/// A format of weights in memory.
pub(crate) trait Kept: Copy + Default + Send {
    /// Writes `numbers` to `out`, of the same length.
    ///
    /// # Errors
    /// The first number that is finite there and would not be here.
    fn keep(numbers: &[f32], out: &mut [Self]) -> Result<(), f32>;
}

impl Kept for f32 {
    fn keep(numbers: &[f32], out: &mut [Self]) -> Result<(), f32> {
        out.copy_from_slice(numbers);
        Ok(())
    }
}

impl Kept for f16 {
    fn keep(numbers: &[f32], out: &mut [Self]) -> Result<(), f32> {
        // From here on half precision rounds to infinity.
        refuse_from(65_520.0, numbers)?;
        out.convert_from_f32_slice(numbers);
        Ok(())
    }
}

impl Kept for bf16 {
    fn keep(numbers: &[f32], out: &mut [Self]) -> Result<(), f32> {
        // Half a step above the largest.
        refuse_from(f32::from_bits(0x7f7f_8000), numbers)?;
        out.convert_from_f32_slice(numbers);
        Ok(())
    }
}

/// The first finite number from `bound` on or below its negative.
fn refuse_from(bound: f32, numbers: &[f32]) -> Result<(), f32> {
    let too_large = |x: &f32| (x.abs() >= bound) & (x.abs() < f32::INFINITY);
    // All of them are looked at, so that the loop is one over vectors.
    match numbers.iter().fold(false, |any, x| any | too_large(x)) {
        true => numbers.iter().copied().find(too_large).map_or(Ok(()), Err),
        false => Ok(()),
    }
}

/// A number format of files.
pub(super) trait Stored<const N: usize> {
    /// Writes `elements`, little-endian, to `out`, of the same length.
    fn widen(elements: &[[u8; N]], out: &mut [f32]);
}

/// The formats that safetensors files may have.
pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Stored<4> for F32 {
    fn widen(elements: &[[u8; 4]], out: &mut [f32]) {
        out.iter_mut().zip(elements).for_each(|(out, element)| *out = f32::from_le_bytes(*element));
    }
}

impl Stored<2> for F16 {
    fn widen(elements: &[[u8; 2]], out: &mut [f32]) {
        let mut halves = [f16::ZERO; BATCH];
        for (elements, out) in elements.chunks(BATCH).zip(out.chunks_mut(BATCH)) {
            halves.iter_mut().zip(elements).for_each(|(half, element)| *half = f16::from_le_bytes(*element));
            halves[..elements.len()].convert_to_f32_slice(out);
        }
    }
}

impl Stored<2> for Bf16 {
    fn widen(elements: &[[u8; 2]], out: &mut [f32]) {
        // The upper half of a number in single precision.
        let wide = |element: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(element)) << 16);
        out.iter_mut().zip(elements).for_each(|(out, element)| *out = wide(*element));
    }
}

/// `elements` in the format `T`, to `out`, of the same length.
///
/// # Errors
/// As [`Kept::keep`].
pub(super) fn convert<S: Stored<N>, T: Kept, const N: usize>(elements: &[[u8; N]], out: &mut [T]) -> Result<(), f32> {
    let mut wide = [0.0; BATCH];
    for (elements, out) in elements.chunks(BATCH).zip(out.chunks_mut(BATCH)) {
        let wide = &mut wide[..elements.len()];
        S::widen(elements, wide);
        T::keep(wide, out)?;
    }
    Ok(())
}

/// A format as it is.
pub(super) fn copy<T>(elements: &[[u8; 2]], out: &mut [T], read: impl Fn([u8; 2]) -> T) -> Result<(), f32> {
    out.iter_mut().zip(elements).for_each(|(out, element)| *out = read(*element));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 16-bit pattern, and numbers around what half precision can hold.
    #[test]
    fn slices_are_converted_as_numbers_are() {
        let elements: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        let same = |got: f32, want: f32| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        let (mut half, mut brain) = (vec![0.0; elements.len()], vec![0.0; elements.len()]);
        convert::<F16, f32, 2>(&elements, &mut half).expect("f32 holds all");
        convert::<Bf16, f32, 2>(&elements, &mut brain).expect("f32 holds all");
        let mut copied = vec![f16::ZERO; elements.len()];
        copy(&elements, &mut copied, f16::from_le_bytes).expect("they are the same");
        for (i, element) in elements.iter().enumerate() {
            assert!(same(half[i], f16::from_le_bytes(*element).to_f32()), "{element:?}");
            assert!(same(brain[i], bf16::from_le_bytes(*element).to_f32()), "{element:?}");
            assert_eq!(copied[i].to_le_bytes(), *element);
        }
        for number in
            [0.0, -0.0, 1.0, -6.1e-5, 5.9e-8, 1e-9, 65_504.0, -65_519.9, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE]
        {
            for len in [1, 7, 1024, 2500] {
                let elements = vec![f32::to_le_bytes(number); len];
                let mut out = vec![f16::ONE; len];
                convert::<F32, f16, 4>(&elements, &mut out).expect("it fits");
                let want = f16::from_f32(number);
                assert!(out.iter().all(|x| x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan()), "{number}");
                let mut out = vec![bf16::ONE; len];
                convert::<F32, bf16, 4>(&elements, &mut out).expect("it fits");
                let want = bf16::from_f32(number);
                assert!(out.iter().all(|x| x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan()), "{number}");
            }
        }
        for number in [65_520.0, -65_520.0, 1e30, f32::MAX] {
            for at in [0, 5, 2400] {
                let mut elements = vec![1f32.to_le_bytes(); 2500];
                elements[at] = number.to_le_bytes();
                elements[2499] = 7e4f32.to_le_bytes();
                assert_eq!(convert::<F32, f16, 4>(&elements, &mut vec![f16::ZERO; 2500]), Err(number));
            }
        }
    }

    #[test]
    fn the_largest_of_bf16_and_what_rounds_beyond() {
        let convert = |bits: u32| {
            let mut out = [bf16::ZERO];
            convert::<F32, bf16, 4>(&[f32::from_bits(bits).to_le_bytes()], &mut out).map(|()| out[0])
        };
        assert_eq!(convert(0x7f7f_7fff), Ok(bf16::MAX));
        for bits in [0x7f7f_8000, 0x7f7f_ffff, 0xff7f_8000] {
            assert!(bf16::from_f32(f32::from_bits(bits)).is_infinite());
            assert_eq!(convert(bits), Err(f32::from_bits(bits)));
        }
        assert_eq!(convert(f32::INFINITY.to_bits()), Ok(bf16::INFINITY));
    }
}
