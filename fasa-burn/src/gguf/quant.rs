//! Number formats of GGUF, and from each to `f32`.
//!
//! Quantized formats come in blocks of numbers that share scales. Layouts are those of ggml.

use half::{bf16, f16};

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 32 numbers of 8 bits and a scale.
    Q8_0,
    /// 32 numbers of 4 bits and a scale.
    Q4_0,
    /// 256 numbers of 4 bits; 8 scales and minima of 6 bits, and one of each for those.
    Q4K,
    /// 256 numbers of 6 bits; 16 scales of 8 bits, and one for those.
    Q6K,
}

/// The most numbers that a block holds.
const LARGEST: usize = 256;

impl Format {
    const ALL: [(u32, Self, &str); 7] = [
        (0, Self::F32, "F32"),
        (1, Self::F16, "F16"),
        (30, Self::Bf16, "BF16"),
        (8, Self::Q8_0, "Q8_0"),
        (2, Self::Q4_0, "Q4_0"),
        (12, Self::Q4K, "Q4_K"),
        (14, Self::Q6K, "Q6_K"),
    ];

    /// By ggml's number.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|(n, ..)| *n == number).map(|(_, format, _)| format)
    }

    /// All that can be read.
    pub fn names() -> String {
        Self::ALL.map(|(.., name)| name).join(", ")
    }

    /// Numbers in a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of so many numbers, a multiple of a block; `None` if that is more than memory has.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        (elements / self.block()).checked_mul(self.block_bytes())
    }

    /// The numbers of whole blocks.
    pub fn dequantize(self, bytes: &[u8], out: &mut Vec<f32>) {
        let mut numbers = [0.0; LARGEST];
        let numbers = &mut numbers[..self.block()];
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::F32 => numbers[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Self::F16 => numbers[0] = half(block),
                Self::Bf16 => numbers[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Self::Q8_0 => q8_0(block, numbers),
                Self::Q4_0 => q4_0(block, numbers),
                Self::Q4K => q4_k(block, numbers),
                Self::Q6K => q6_k(block, numbers),
            }
            out.extend_from_slice(numbers);
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = (half(block), &block[2..]);
    for (number, code) in out.iter_mut().zip(codes) {
        *number = scale * f32::from(*code as i8);
    }
}

/// Low nibbles first, then the high ones.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = (half(block), &block[2..]);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = scale * (f32::from(code & 0xf) - 8.0);
        *high = scale * (f32::from(code >> 4) - 8.0);
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    let (packed, codes) = (&block[4..16], &block[16..]);
    // The first four scales and minima lie in six bits of a byte; the upper two bits of these are those of the last four.
    let six = |j: usize| match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => ((packed[j + 4] & 0xf) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4),
    };
    for (pair, (numbers, codes)) in out.chunks_exact_mut(64).zip(codes.chunks_exact(32)).enumerate() {
        let (low, high) = numbers.split_at_mut(32);
        let of = |j: usize| {
            let (s, m) = six(j);
            (scale * f32::from(s), minimum * f32::from(m))
        };
        let ((low_scale, low_minimum), (high_scale, high_minimum)) = (of(2 * pair), of(2 * pair + 1));
        for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
            *low = low_scale * f32::from(code & 0xf) - low_minimum;
            *high = high_scale * f32::from(code >> 4) - high_minimum;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = (&rest[..16], half(&rest[16..]));
    for (part, numbers) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[64 * part..], &high[32 * part..], &scales[8 * part..]);
        for l in 0..32 {
            let codes = [
                (low[l] & 0xf) | (high[l] & 3) << 4,
                (low[l + 32] & 0xf) | (high[l] >> 2 & 3) << 4,
                (low[l] >> 4) | (high[l] >> 4 & 3) << 4,
                (low[l + 32] >> 4) | (high[l] >> 6) << 4,
            ];
            for (quarter, code) in codes.into_iter().enumerate() {
                let step = f32::from(scales[l / 16 + 2 * quarter] as i8);
                numbers[l + 32 * quarter] = scale * step * (f32::from(code) - 32.0);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// The numbers are those that llama.cpp's own package reads from the same blocks.
    #[test]
    fn blocks_hold_what_the_reference_reads() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/gguf/blocks.safetensors");
        let file = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let data = |name: String| tensors.tensor(&name).unwrap().data().to_vec();
        for (_, format, name) in Format::ALL.into_iter().filter(|(_, format, _)| format.block() > 1) {
            let bytes = data(format!("{name}.bytes"));
            let values = data(format!("{name}.values"));
            let want: Vec<f32> = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(format.bytes(want.len()), Some(bytes.len()), "{name}");
            let mut got = Vec::new();
            format.dequantize(&bytes, &mut got);
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3), "{name}: {got} {want}");
            }
        }
    }

    #[test]
    fn plain_numbers_are_exact() {
        let mut out = Vec::new();
        Format::F32.dequantize(&0.1f32.to_le_bytes(), &mut out);
        Format::F16.dequantize(&f16::from_f32(6.1e-5).to_le_bytes(), &mut out);
        Format::Bf16.dequantize(&bf16::from_f32(-3.0).to_le_bytes(), &mut out);
        assert_eq!(out, [0.1, f16::from_f32(6.1e-5).to_f32(), -3.0]);
        assert_eq!((Format::of(15), Format::Q8_0.bytes(usize::MAX)), (None, None));
    }
}
