//! Kernels against the naive oracle in `fasa-core`, on whatever device this machine offers.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used)]

mod support;

use cubecl::server::Handle;
use fasa_core::Rows as CoreRows;
use fasa_core::attend::attend as naive;
use fasa_core::budget::Guarantees;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{HeadPlan, Precision, SketchRows, fold_query, quantize_row, score as naive_score};
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::combine::{combine, rank};
use fasa_cube::select::best;
use fasa_cube::step::{Choice, Scratch, step};
use fasa_cube::tip::{Channels, Sketch, are_halves, score, score_stride};
use fasa_cube::{Format, Gpu, Length};
use support::{download, gpu, noise, upload};

#[test]
fn selection_is_exact() {
    let Some(gpu) = gpu() else { return };
    for (rows, len, budget, guarantees) in [
        (1, 1, 1, Guarantees { sinks: 0, recent: 0 }),
        (2, 37, 8, Guarantees { sinks: 2, recent: 3 }),
        (3, 1500, 64, Guarantees { sinks: 4, recent: 16 }),
        (2, 9001, 256, Guarantees { sinks: 4, recent: 16 }),
        (1, 9001, 2500, Guarantees { sinks: 4, recent: 16 }),
        (1, 40_000, 300, Guarantees { sinks: 4, recent: 16 }),
        (1, 300, 20, Guarantees { sinks: 4, recent: 16 }),
    ] {
        // As drawn; with many equal values; all equal.
        for steps in [1e6f32, 3.0, 0.0] {
            let values: Vec<f32> = noise(len, rows * len).iter().map(|x| (x * steps).round()).collect();
            let stride = score_stride(len);
            let mut padded = vec![f32::NAN; rows * stride];
            for (to, from) in padded.chunks_mut(stride).zip(values.chunks(len)) {
                to[..len].copy_from_slice(from);
            }
            let (sinks, recent_from) = guarantees.forced(len, budget);
            let ranked = rank(&gpu, &upload(&gpu, &padded), rows, len, [sinks, recent_from]).unwrap();
            let got: Vec<u32> = download(&gpu, &best(&gpu, &ranked, budget).unwrap());
            for (row, (got, scores)) in got.chunks(budget).zip(values.chunks(len)).enumerate() {
                let (mut want, mut scratch) = (vec![0; budget], vec![0; scratch_len(budget)]);
                guarantees.pick(scores, budget, &mut scratch, &mut want).unwrap();
                let mut got = got.to_vec();
                got.sort_unstable();
                assert_eq!(got, want, "{len} tokens, budget {budget}, {steps} steps, row {row}");
            }
        }
    }
}

#[test]
fn attention_is_that_of_the_oracle() {
    let Some(gpu) = gpu() else { return };
    for (heads, group, dim, len, chosen, lists) in [
        (1, 1, 8, 1, 0, 1),
        (2, 4, 64, 77, 0, 1),
        (2, 3, 10, 300, 0, 1),
        (1, 2, 128, 1000, 0, 1),
        (2, 4, 64, 500, 33, 1),
        (2, 4, 64, 500, 33, 2),
        (2, 3, 16, 90, 7, 3),
    ] {
        let capacity = len + 5;
        let (keys, values) = (noise(1, heads * capacity * dim), noise(2, heads * capacity * dim));
        let queries = noise(3, heads * group * dim);
        let positions: Vec<u32> = (0..heads * lists * chosen).map(|i| (i * 13 % len) as u32).collect();
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let store = |x: &[f32]| -> (Handle, Vec<f32>) {
                match format {
                    Format::F32 => (upload(&gpu, x), x.to_vec()),
                    Format::F16 => {
                        let h: Vec<u16> = x.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
                        (upload(&gpu, &h), h.iter().map(|h| half::f16::from_bits(*h).to_f32()).collect())
                    }
                    Format::Bf16 => {
                        let h: Vec<u16> = x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                        (upload(&gpu, &h), h.iter().map(|h| half::bf16::from_bits(*h).to_f32()).collect())
                    }
                }
            };
            let ((k, keys), (v, values)) = (store(&keys), store(&values));
            let cache = Cache { format, keys: k, values: v, heads, capacity, dim };
            let list = upload(&gpu, if chosen > 0 { &positions } else { &[0u32] });
            let kept = Length::on_device(Length::upload(&gpu, len), capacity);
            let rows = match (chosen, format) {
                (0, Format::F16) => Rows::Kept(&kept),
                (0, _) => Rows::First(len),
                _ => Rows::Chosen { positions: &list, count: chosen, lists },
            };
            let got = attend(&gpu, &upload(&gpu, &queries), heads * group, &cache, rows).unwrap();
            let got: Vec<f32> = download(&gpu, &got);
            for (h, (got, query)) in got.chunks(dim).zip(queries.chunks(dim)).enumerate() {
                let head = h / group;
                let at = head * capacity * dim..(head * capacity + len) * dim;
                let k = CoreRows::contiguous(&keys[at.clone()], dim).unwrap();
                let v = CoreRows::contiguous(&values[at], dim).unwrap();
                let list = h / (group / lists);
                let list = (chosen > 0).then(|| &positions[list * chosen..(list + 1) * chosen]);
                let mut want = vec![0.0; dim];
                naive(query, k, v, list, &mut want).unwrap();
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 1e-5, "{format:?} d {dim} len {len} head {h}: {got} {want}");
                }
            }
        }
    }
}

/// Sketches of `heads` heads in every place where they are needed.
struct Sketched {
    plan: (Vec<u16>, Vec<f32>, Vec<f32>),
    codes: Vec<u8>,
    scales: Vec<u8>,
    sketch: Sketch,
    channels: Channels,
}

fn sketched(gpu: &Gpu, keys: &[f32], precision: Precision, chunks: usize, heads: usize, dim: usize) -> Sketched {
    let capacity = keys.len() / heads / dim;
    let half = (dim / 2) as u16;
    let channels: Vec<u16> = (0..chunks as u16).chain((0..chunks as u16).map(|c| c + half)).collect();
    let count = 2 * chunks;
    let (scale, centre) = (noise(7, count).iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>(), noise(8, count));
    let plan = HeadPlan::new(precision, &channels, &scale, &centre).unwrap();
    let (bytes, scale_bytes, words) =
        (precision.row_bytes(chunks), precision.scale_bytes(), Sketch::row_words(precision, chunks));
    let (mut codes, mut scales) = (vec![0u8; heads * capacity * bytes], vec![0u8; heads * capacity * scale_bytes]);
    let mut padded = vec![0u8; heads * capacity * words * 4];
    for (r, key) in keys.chunks(dim).enumerate() {
        let code = &mut codes[r * bytes..(r + 1) * bytes];
        quantize_row(&plan, key, code, &mut scales[r * scale_bytes..(r + 1) * scale_bytes]).unwrap();
        padded[r * words * 4..r * words * 4 + bytes].copy_from_slice(code);
    }
    let all_scales = if scales.is_empty() { vec![0u8; 4] } else { scales.clone() };
    let sketch =
        Sketch::new(precision, chunks, heads, capacity, upload(gpu, &padded), upload(gpu, &all_scales)).unwrap();
    let wide: Vec<u32> = channels.iter().map(|c| u32::from(*c)).collect();
    let tables = Channels {
        channels: upload(gpu, &wide.repeat(heads)),
        scale: upload(gpu, &scale.repeat(heads)),
        centre: upload(gpu, &centre.repeat(heads)),
    };
    Sketched { plan: (channels, scale, centre), codes, scales, sketch, channels: tables }
}

impl Sketched {
    /// Scores of a query against the first `len` rows of a head, times 1 / √d.
    fn naive(&self, head: usize, query: &[f32], len: usize) -> Vec<f32> {
        let (precision, chunks, capacity) = (self.sketch.precision, self.sketch.chunks, self.sketch.capacity);
        let (channels, scale, centre) = &self.plan;
        let plan = HeadPlan::new(precision, channels, scale, centre).unwrap();
        let (bytes, scale_bytes) = (precision.row_bytes(chunks), precision.scale_bytes());
        let rows = head * capacity..head * capacity + len;
        let scales = &self.scales[rows.start * scale_bytes..rows.end * scale_bytes];
        let view =
            SketchRows::new(precision, chunks, len, &self.codes[rows.start * bytes..rows.end * bytes], scales).unwrap();
        let (mut folded, mut out) = (vec![0.0; 2 * chunks], vec![0.0; len]);
        fold_query(&plan, query, &mut folded).unwrap();
        naive_score(&view, &folded, &mut out).unwrap();
        out.iter_mut().for_each(|x| *x /= (query.len() as f32).sqrt());
        out
    }
}

/// The mean of softmaxes; the scores themselves if they are of one head.
fn mean(scores: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = vec![0.0f32; scores[0].len()];
    for row in scores {
        let most = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let total: f32 = row.iter().map(|x| (x - most).exp()).sum();
        let weights = row.iter().map(|x| (x - most).exp() / total / scores.len() as f32);
        mean.iter_mut().zip(weights).for_each(|(m, w)| *m += w);
    }
    if scores.len() > 1 { mean } else { scores[0].clone() }
}

/// Scores of every format, and their group's mean, against `fasa-core`.
#[test]
fn importance_is_that_of_the_oracle() {
    let Some(gpu) = gpu() else { return };
    let dim = 32;
    for (precision, chunks, group, together, len) in [
        (Precision::Int4, 16, 4, 4, 1300),
        (Precision::Int4, 16, 4, 2, 70),
        (Precision::Int4, 5, 1, 1, 7),
        (Precision::Int8, 7, 3, 3, 300),
        (Precision::F16, 8, 2, 2, 515),
        (Precision::F16, 8, 2, 1, 515),
        (Precision::F32, 3, 1, 2, 40),
    ] {
        let (heads, capacity) = (2, len + len % 2 + 6);
        let (keys, queries) = (noise(9, heads * capacity * dim), noise(10, heads * group * dim));
        let made = sketched(&gpu, &keys, precision, chunks, heads, dim);
        for on_device in [false, true] {
            let length = match on_device {
                true => Length::on_device(Length::upload(&gpu, len), capacity),
                false => len.into(),
            };
            let most = length.most();
            let found = score(&gpu, &upload(&gpu, &queries), dim, group, &made.sketch, &made.channels, length).unwrap();
            let ranked = combine(&gpu, &found, together, most, [0, most]).unwrap();
            let means: Vec<f32> = download(&gpu, &ranked.values);
            // Halves are rounded, and so is what is made of them.
            let (scores, rounding): (Vec<f32>, f32) = if are_halves(group) {
                let halves: Vec<u16> = download(&gpu, &found.scores);
                (halves.iter().map(|h| half::f16::from_bits(*h).to_f32()).collect(), 0.5f32.powi(11))
            } else {
                (download(&gpu, &found.scores), 0.0)
            };
            let want: Vec<Vec<f32>> =
                (queries.chunks(dim).enumerate()).map(|(h, query)| made.naive(h / group, query, len)).collect();
            for (h, want) in want.iter().enumerate() {
                for (t, want) in want.iter().enumerate() {
                    let got = scores[(h / group * found.stride + t) * group + h % group];
                    let allowed = 1e-4 * (1.0 + want.abs()) + rounding * want.abs();
                    assert!((got - want).abs() < allowed, "{precision:?} {h} {t}: {got} {want}");
                }
            }
            for (list, scores) in want.chunks(together).enumerate() {
                for (t, want) in mean(scores).iter().enumerate() {
                    let got = means[list * ranked.stride + t];
                    let largest = scores.iter().map(|s| s[t].abs()).fold(1.0, f32::max);
                    let allowed = 1e-4 * want.abs().max(1e-3) + rounding * want.abs() * largest;
                    assert!((got - want).abs() < allowed, "{precision:?} mean {t}: {got} {want}");
                }
            }
        }
    }
}

/// A whole step: the tokens are the best by the naive importance, and the result is naive attention to them.
#[test]
fn a_step_is_that_of_the_oracle() {
    let Some(gpu) = gpu() else { return };
    let (dim, heads, group) = (64, 2, 4);
    for (len, lists, budget, sharpness) in
        [(3000, 1, 64, 1.0), (3000, 4, 40, 1.0), (700, 2, 64, 1.0), (3000, 1, 64, 400.0)]
    {
        let capacity = len + 10;
        let choice = Choice { budget, lists, sinks: 4, recent: 16 };
        let (keys, values) = (noise(1, heads * capacity * dim), noise(2, heads * capacity * dim));
        let queries: Vec<f32> = noise(3, heads * group * dim).iter().map(|x| x * sharpness).collect();
        let made = sketched(&gpu, &keys, Precision::Int4, 16, heads, dim);
        let (k, v) = (upload(&gpu, &keys), upload(&gpu, &values));
        let cache = Cache { format: Format::F32, keys: k, values: v, heads, capacity, dim };
        let new = |len: Length| Scratch::new(&gpu, heads * group, heads, heads, len, choice).unwrap();
        // Made for a longer context and another budget.
        let other = Choice { budget: 100, sinks: 0, recent: 1, ..choice };
        let roomy = Scratch::new(&gpu, heads * group, heads, heads, 9000, other).unwrap();
        assert!(roomy.with(9001, choice).is_err() && roomy.with(10, Choice { lists: 8, ..choice }).is_err());
        for scratch in [
            new(len.into()),
            new(Length::on_device(Length::upload(&gpu, len), capacity)),
            roomy.with(len, choice).unwrap(),
        ] {
            let out = gpu.words(heads * group * dim);
            let queries_there = upload(&gpu, &queries);
            step(&gpu, &queries_there, &cache, &made.sketch, &made.channels, &scratch, &out).unwrap();
            let (got, positions): (Vec<f32>, Vec<u32>) = (download(&gpu, &out), download(&gpu, &scratch.positions));
            for (list, chosen) in positions[..heads * lists * budget].chunks(budget).enumerate() {
                let share = group / lists;
                let of_list = list * share..(list + 1) * share;
                let scores: Vec<Vec<f32>> =
                    (of_list.clone()).map(|h| made.naive(h / group, &queries[h * dim..(h + 1) * dim], len)).collect();
                let importance = mean(&scores);
                let mut taken = vec![false; len];
                chosen.iter().for_each(|t| assert!(!std::mem::replace(&mut taken[*t as usize], true), "twice: {t}"));
                assert!((0..4).chain(len - 16..len).all(|t| taken[t]), "a guaranteed token is missing");
                let free = || 4..len - 16;
                let worst = free().filter(|t| taken[*t]).map(|t| importance[t]).fold(f32::INFINITY, f32::min);
                let missed = free().filter(|t| !taken[*t]).map(|t| importance[t]).fold(f32::NEG_INFINITY, f32::max);
                let largest = scores.iter().flatten().fold(1.0f32, |most, s| most.max(s.abs()));
                let allowed = (1e-4 + 2.0 * 0.5f32.powi(11) * largest) * missed.abs();
                assert!(worst >= missed - allowed, "{len} {lists} list {list}: {worst} but not {missed}");
                for h in of_list {
                    let at = h / group * capacity * dim..(h / group * capacity + len) * dim;
                    let k = CoreRows::contiguous(&keys[at.clone()], dim).unwrap();
                    let v = CoreRows::contiguous(&values[at], dim).unwrap();
                    let mut want = vec![0.0; dim];
                    naive(&queries[h * dim..(h + 1) * dim], k, v, Some(chosen), &mut want).unwrap();
                    for (got, want) in got[h * dim..].iter().zip(&want) {
                        assert!((got - want).abs() < 1e-4, "{len} {lists} head {h}: {got} {want}");
                    }
                }
            }
        }
    }
}
