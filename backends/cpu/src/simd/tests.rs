//! Every instruction set against plain arithmetic.

use super::*;
use crate::isa::{Isa, available, dispatch};
use half::f16;

/// Results of one pass over all operations.
#[derive(Debug, Default, Clone, PartialEq)]
struct Results {
    floats: Vec<[f32; LANES]>,
    sums: [f32; 4],
    groups: Vec<[f32; LANES]>,
    dots: [[f32; LANES]; 2],
    largest: f32,
    at_least: u32,
}

fn everything<S: Simd>(
    simd: S,
    x: &[[f32; LANES]; 4],
    halves: &[[u8; 2]; LANES],
    bytes: &[[u8; 16]; LANES],
    out: &mut Results,
) {
    let [a, b, c, d] = [simd.load(&x[0]), simd.load(&x[1]), simd.load(&x[2]), simd.load(&x[3])];
    let stored = |x| {
        let mut to = [0.0; LANES];
        simd.store(x, &mut to);
        to
    };
    let one = simd.splat(1.0);
    out.floats = [
        simd.add(a, b),
        simd.sub(a, b),
        simd.mul(a, b),
        simd.mul_add(a, b, c),
        simd.max(a, b),
        simd.min(a, b),
        simd.where_ge(a, b, one),
        simd.power_of_two(simd.add(d, simd.splat(12_582_912.0))),
        simd.load_half(halves),
        // Four vectors, each in four places, and sums that tell the places apart.
        simd.largest_of_each(std::array::from_fn(|k| {
            simd.add([a, b, c, d][(k * 7 + k / 4) % 4], simd.splat(k as f32))
        })),
    ]
    .map(stored)
    .to_vec();
    out.sums = simd.sum4([a, b, c, d]);
    out.largest = simd.largest(a);
    out.at_least = simd.at_least(a, b);
    let groups = simd.transpose(bytes.each_ref());
    out.groups = simd
        .transpose_rows(bytes)
        .into_iter()
        .chain(groups)
        .flat_map(|g| [simd.low_nibbles(g), simd.high_nibbles(g)])
        // The low byte alone, which a float holds exactly.
        .map(|g| stored(simd.to_float(simd.dot4(simd.splat_i(0), g, 1))))
        .collect();
    let query = i32::from_le_bytes([127, (-127i8) as u8, 5, (-77i8) as u8]);
    let sums: i32 = [127, -127, 5, -77].iter().sum();
    out.dots[0] = stored(simd.to_float(simd.dot4(simd.splat_i(3), simd.low_nibbles(groups[1]), query)));
    let signed = simd.dot4_signed(simd.splat_i(-S::SIGNED_OFFSET * sums), groups[2], query);
    out.dots[1] = stored(simd.to_float(signed));
    simd.prefetch(x);
}

fn run(isa: Isa, x: &[[f32; LANES]; 4], halves: &[[u8; 2]; LANES], bytes: &[[u8; 16]; LANES], out: &mut Results) {
    dispatch!(@for isa, [] (x: &[[f32; LANES]; 4], halves: &[[u8; 2]; LANES], bytes: &[[u8; 16]; LANES], out: &mut Results) [] everything)
}

#[test]
fn every_operation_on_every_instruction_set() {
    for round in 0..50 {
        let number = |i: usize| ((i * 37 + round * 91) % 113) as f32 / 8.0 - 7.0;
        let mut x: [[f32; LANES]; 4] = std::array::from_fn(|v| std::array::from_fn(|i| number(v * LANES + i)));
        x[3] = std::array::from_fn(|i| ((i * 19 + round * 5) % 253) as f32 - 126.0);
        let halves = std::array::from_fn(|i| (((i * 4099 + round * 1311) % 65536) as u16).to_le_bytes());
        // -128 is no code: sketches go from -127 to 127.
        let byte = |i: usize| ((i * 73 + round * 29) % 255) as u8;
        let bytes: [[u8; 16]; LANES] = std::array::from_fn(|r| {
            std::array::from_fn(|i| byte(r * 16 + i).wrapping_add(u8::from(byte(r * 16 + i) >= 128)))
        });

        let plain = |f: fn(f32, f32, f32) -> f32| std::array::from_fn(|i| f(x[0][i], x[1][i], x[2][i]));
        let largest = |x: &[f32; LANES]| x.iter().copied().fold(f32::MIN, f32::max);
        let mut want = Results {
            floats: vec![
                plain(|a, b, _| a + b),
                plain(|a, b, _| a - b),
                plain(|a, b, _| a * b),
                plain(|a, b, c| a * b + c), // exact: few bits
                plain(|a, b, _| a.max(b)),
                plain(|a, b, _| a.min(b)),
                plain(|a, b, _| f32::from(u8::from(a >= b))),
                x[3].map(f32::exp2),
                halves.map(|h| f16::from_le_bytes(h).to_f32()),
                std::array::from_fn(|k| largest(&x[(k * 7 + k / 4) % 4]) + k as f32),
            ],
            sums: x.map(|x| x.iter().sum()),
            largest: largest(&x[0]),
            at_least: (0..LANES).fold(0, |bits, i| bits | u32::from(x[0][i] >= x[1][i]) << i),
            ..Results::default()
        };
        for k in (0..4).chain(0..4) {
            want.groups.push(bytes.map(|b| f32::from(b[4 * k] & 15)));
            want.groups.push(bytes.map(|b| f32::from(b[4 * k] >> 4)));
        }
        let query = [127, -127, 5, -77];
        want.dots[0] = bytes.map(|b| 3.0 + (0..4).map(|i| f32::from(b[4 + i] & 15) * query[i] as f32).sum::<f32>());
        want.dots[1] = bytes.map(|b| (0..4).map(|i| f32::from(b[8 + i] as i8) * query[i] as f32).sum());

        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            let (mut got, mut want) = (Results::default(), want.clone());
            run(isa, &x, &halves, &bytes, &mut got);
            // A NaN is not equal to itself: only its kind is compared.
            for (got, want) in got.floats.iter_mut().flatten().zip(want.floats.iter_mut().flatten()) {
                assert_eq!(got.is_nan(), want.is_nan(), "{isa:?}");
                if got.is_nan() {
                    (*got, *want) = (0.0, 0.0);
                }
            }
            assert_eq!(got, want, "{isa:?}");
        }
    }
}

#[test]
fn every_half() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
        for first in (0..=u16::MAX).step_by(LANES) {
            let halves: [[u8; 2]; LANES] = std::array::from_fn(|i| (first + i as u16).to_le_bytes());
            let mut got = Results::default();
            run(isa, &[[0.0; LANES]; 4], &halves, &[[0; 16]; LANES], &mut got);
            for (half, got) in halves.iter().zip(got.floats[8]) {
                let want = f16::from_le_bytes(*half).to_f32();
                assert!(
                    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                    "{isa:?} {half:?} {got} {want}"
                );
            }
        }
    }
}

fn products<S: Simd>(simd: S, a: &[f32], b: &[f32], halves: &[f16], out: &mut [f32; 3]) {
    let query = Padded::new(b, b.len(), 1.0);
    let [[x], [y]] = dots::<S, f32, 2, 1>(simd, [a, b], [query.row(0)]);
    out[0] = simd.sum(x);
    out[1] = simd.sum(y);
    let [[x]] = dots::<S, f16, 1, 1>(simd, [halves], [query.row(0)]);
    out[2] = simd.sum(x);
}

#[test]
fn products_of_every_length() {
    fn run(isa: Isa, a: &[f32], b: &[f32], halves: &[f16], out: &mut [f32; 3]) {
        dispatch!(@for isa, [] (a: &[f32], b: &[f32], halves: &[f16], out: &mut [f32; 3]) [] products)
    }
    for n in 1..70 {
        let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
        let halves: Vec<f16> = a.iter().map(|x| f16::from_f32(*x)).collect();
        let exact = |a: &[f32]| a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let rounded: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
            let mut got = [0.0; 3];
            run(isa, &a, &b, &halves, &mut got);
            for (got, want) in got.iter().zip([exact(&a), exact(&b), exact(&rounded)]) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{isa:?} {n}: {got} {want}");
            }
        }
    }
}
