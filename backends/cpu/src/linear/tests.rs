//! Against plain loops in double precision, on every instruction set.

use super::*;
use crate::isa::{Isa, available};

/// Numbers from -1 to 1.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn naive(x: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let product = |x: &[f32], row: &[f32]| x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let rows = |x| weight.chunks_exact(inputs).map(move |row| product(x, row) as f32);
    x.chunks_exact(inputs).flat_map(rows).collect()
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 2e-5 * (1.0 + want.abs()), "{what} {i}: {got} {want}");
    }
}

/// Inputs, outputs, tokens: odd ones, and one that is split over threads.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (3, 5, 2), (16, 4, 1), (17, 7, 3), (33, 2, 8), (64, 19, 5), (100, 30, 4), (256, 301, 1), (250, 303, 6)];

#[test]
fn equals_plain_loops() {
    for (inputs, outputs, tokens) in SHAPES {
        let (x, weight) = (noise(1, tokens * inputs), noise(2, outputs * inputs));
        let half: Vec<f16> = weight.iter().map(|w| f16::from_f32(*w)).collect();
        let exact: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
        let name = format!("{tokens} x {inputs} to {outputs}");
        let mut out = vec![f32::NAN; tokens * outputs];
        linear(&x, &weight[..], inputs, &mut out).expect("sizes");
        close(&name, &out, &naive(&x, &weight, inputs));
        linear(&x, &half[..], inputs, &mut out).expect("sizes");
        let want = naive(&x, &exact, inputs);
        close(&format!("{name}, f16"), &out, &want);
        linear_add(&x, &half[..], inputs, &mut out).expect("sizes");
        close(&format!("{name}, added"), &out, &want.iter().map(|w| 2.0 * w).collect::<Vec<_>>());
    }
}

#[test]
fn every_instruction_set() {
    fn run<E: Element>(isa: Isa, x: &Padded, weight: &[E], inputs: usize, sums: &mut [f32]) {
        dispatch!(@for isa, [E: Element] (x: &Padded, weight: &[E], inputs: usize, sums: &mut [f32]) [] rows_kernel)
    }
    for isa in Isa::ALL.into_iter().filter(|isa| *isa <= available()) {
        for (inputs, outputs, tokens) in SHAPES {
            let (x, weight) = (noise(3, tokens * inputs), noise(4, outputs * inputs));
            let half: Vec<f16> = weight.iter().map(|w| f16::from_f32(*w)).collect();
            let exact: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            let transposed = |weight: &[f32]| {
                let want = naive(&x, weight, inputs);
                let columns = (0..outputs).flat_map(|r| (0..tokens).map(move |t| t * outputs + r));
                columns.map(|at| want[at]).collect::<Vec<_>>()
            };
            let padded = Padded::new(&x, inputs, 1.0);
            let mut sums = vec![f32::NAN; tokens * outputs];
            run(isa, &padded, &weight, inputs, &mut sums);
            close(&format!("{isa:?} f32 {tokens} x {inputs} to {outputs}"), &sums, &transposed(&weight));
            run(isa, &padded, &half, inputs, &mut sums);
            close(&format!("{isa:?} f16 {tokens} x {inputs} to {outputs}"), &sums, &transposed(&exact));
        }
    }
}

#[test]
fn tokens_and_threads_do_not_change_a_bit() {
    let (inputs, outputs, tokens) = (192, 400, 7);
    let (x, weight) = (noise(5, tokens * inputs), noise(6, outputs * inputs));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut out = vec![0.0; tokens * outputs];
        pool.install(|| linear(&x, &weight[..], inputs, &mut out)).expect("sizes");
        out
    };
    let together = on(1);
    assert_eq!(together, on(3));
    for (x, want) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
        let mut alone = vec![0.0; outputs];
        linear(x, &weight[..], inputs, &mut alone).expect("sizes");
        assert_eq!(alone, want);
    }
}

#[test]
fn gates() {
    for (inputs, inner, tokens) in SHAPES {
        let (x, gate_up) = (noise(7, tokens * inputs), noise(8, 2 * inner * inputs));
        let (gate, up) = gate_up.split_at(inner * inputs);
        let silu = |x: f32| f64::from(x) / (1.0 + (-f64::from(x)).exp());
        let (gate, up) = (naive(&x, gate, inputs), naive(&x, up, inputs));
        let want: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| (silu(*g) * f64::from(*u)) as f32).collect();
        let mut out = vec![f32::NAN; tokens * inner];
        swiglu(&x, &gate_up[..], inputs, &mut out).expect("sizes");
        close(&format!("{tokens} x {inputs} to {inner}"), &out, &want);
        let mut both = vec![0.0; 2 * tokens * inner];
        linear(&x, &gate_up[..], inputs, &mut both).expect("sizes");
        out.fill(f32::NAN);
        super::gate(&both, inner, &mut out).expect("sizes");
        close(&format!("gates of {tokens} x {inner}"), &out, &want);
    }
    // Gates far from zero saturate; they neither overflow nor turn into NaN.
    for (gate, want) in [(200.0, 200.0), (-200.0, 0.0), (0.0, 0.0)] {
        let mut out = [f32::NAN];
        swiglu(&[1.0], &[gate, 1.0_f32][..], 1, &mut out).expect("sizes");
        // e^-88 is the least there is.
        assert!((out[0] - want).abs() < 1e-30, "{gate}: {out:?}");
    }
}

#[test]
fn norms() {
    for (width, tokens) in [(1, 1), (15, 2), (16, 3), (100, 21)] {
        let (x, weight) = (noise(9, tokens * width), noise(10, width));
        let mut out = vec![f32::NAN; x.len()];
        rms_norm(&x, &weight, 1e-5, &mut out).expect("sizes");
        let want = x.chunks_exact(width).flat_map(|x| {
            let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / width as f64;
            x.iter().zip(&weight).map(move |(x, w)| (f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w)) as f32)
        });
        close("norm", &out, &want.collect::<Vec<_>>());
    }
}

#[test]
fn widening_is_exact() {
    let half: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|h| !h.is_nan()).collect();
    let mut out = vec![f32::NAN; half.len()];
    widen(&half, &mut out).expect("sizes");
    assert!(half.iter().zip(&out).all(|(h, o)| h.to_f32().to_bits() == o.to_bits()));
}

#[test]
fn wrong_sizes_are_errors() {
    let mut out = [0.0; 2];
    assert!(linear(&[0.0; 3], &[0.0f32; 4][..], 2, &mut out).is_err());
    assert!(linear(&[0.0; 2], &[0.0f32; 5][..], 2, &mut out).is_err());
    assert!(linear(&[], &[0.0f32; 4][..], 2, &mut out).is_err());
    assert!(linear(&[0.0; 2], &[0.0f32; 4][..], 0, &mut out).is_err());
    assert!(swiglu(&[0.0; 2], &[0.0f32; 4][..], 2, &mut out).is_err());
    assert!(rms_norm(&[0.0; 3], &[1.0; 2], 1e-5, &mut out).is_err());
    assert!(rms_norm(&[0.0; 4], &[1.0; 2], 1e-5, &mut out).is_err());
    assert!(widen(&[f16::ZERO], &mut out).is_err());
    assert!(gate(&[0.0; 3], 1, &mut out).is_err());
    assert!(gate(&[0.0; 4], 0, &mut out).is_err());
}
