//! Kernels against the naive oracle in `fasa-core`, on whatever device this machine offers.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used)]

use cubecl::Device;
use cubecl::server::Handle;
use fasa_core::Rows as CoreRows;
use fasa_core::attend::attend as naive;
use fasa_core::budget::Guarantees;
use fasa_core::select::scratch_len;
use fasa_core::sketch::{HeadPlan, Precision, SketchRows, fold_query, quantize_row, score as naive_score};
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::combine::{combine, rank};
use fasa_cube::select::best;
use fasa_cube::tip::{Channels, Sketch, score, score_stride};
use fasa_cube::{Format, Gpu};

/// The device, or `None` with a loud word where there is none.
fn gpu() -> Option<Gpu> {
    // By hand, on a machine that has it: FASA_TEST_DEVICE=cuda.
    let device = match std::env::var("FASA_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::cuda(0),
        _ => Device::wgpu(Default::default()),
    };
    match device {
        Ok(device) => Some(Gpu::new(device.client()).expect("a device that can run the kernels")),
        Err(error) => {
            eprintln!("!! SKIPPED: no GPU and no software Vulkan (mesa-vulkan-drivers): {error}");
            None
        }
    }
}

fn noise(seed: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 1) * 7919 + seed * 104_729) * 31 % 20_011) as f32 / 10_005.0 - 1.0).collect()
}

fn upload<T: bytemuck::Pod>(gpu: &Gpu, data: &[T]) -> Handle {
    gpu.client.create_from_slice(bytemuck::cast_slice(data))
}

fn download<T: bytemuck::Pod>(gpu: &Gpu, handle: Handle) -> Vec<T> {
    bytemuck::pod_collect_to_vec(&gpu.client.read_one(handle).unwrap())
}

#[test]
fn selection_is_exact() {
    let Some(gpu) = gpu() else { return };
    for (rows, len, budget, guarantees) in [
        (1, 1, 1, Guarantees { sinks: 0, recent: 0 }),
        (2, 37, 8, Guarantees { sinks: 2, recent: 3 }),
        (3, 1500, 64, Guarantees { sinks: 4, recent: 16 }),
        (2, 9001, 256, Guarantees { sinks: 4, recent: 16 }),
        (1, 9001, 2500, Guarantees { sinks: 4, recent: 16 }),
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
            let ranked = rank(&gpu, &upload(&gpu, &padded), rows, len, budget, [sinks, recent_from]).unwrap();
            let got: Vec<u32> = download(&gpu, best(&gpu, &ranked, budget).unwrap());
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
    for (heads, group, dim, len, chosen) in
        [(1, 1, 8, 1, 0), (2, 4, 64, 77, 0), (2, 3, 10, 300, 0), (1, 2, 128, 1000, 0), (2, 4, 64, 500, 33)]
    {
        let capacity = len + 5;
        let (keys, values) = (noise(1, heads * capacity * dim), noise(2, heads * capacity * dim));
        let queries = noise(3, heads * group * dim);
        let positions: Vec<u32> = (0..heads * chosen).map(|i| (i * 13 % len) as u32).collect();
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
            let rows =
                if chosen > 0 { Rows::Chosen { positions: &list, count: chosen, lists: 1 } } else { Rows::First(len) };
            let got = attend(&gpu, &upload(&gpu, &queries), heads * group, &cache, rows).unwrap();
            let got: Vec<f32> = download(&gpu, got);
            for (h, (got, query)) in got.chunks(dim).zip(queries.chunks(dim)).enumerate() {
                let head = h / group;
                let at = head * capacity * dim..(head * capacity + len) * dim;
                let k = CoreRows::contiguous(&keys[at.clone()], dim).unwrap();
                let v = CoreRows::contiguous(&values[at], dim).unwrap();
                let list = (chosen > 0).then(|| &positions[head * chosen..(head + 1) * chosen]);
                let mut want = vec![0.0; dim];
                naive(query, k, v, list, &mut want).unwrap();
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 1e-5, "{format:?} d {dim} len {len} head {h}: {got} {want}");
                }
            }
        }
    }
}

/// Scores of every format, and their group's mean, against `fasa-core`.
#[test]
fn importance_is_that_of_the_oracle() {
    let Some(gpu) = gpu() else { return };
    let dim = 32;
    for (precision, chunks, group, len) in [
        (Precision::Int4, 16, 4, 1300),
        (Precision::Int4, 5, 1, 7),
        (Precision::Int8, 7, 3, 300),
        (Precision::F16, 8, 2, 515),
        (Precision::F32, 3, 1, 40),
    ] {
        let (heads, capacity) = (2, len + len % 2);
        let count = 2 * chunks;
        let channels: Vec<u16> = (0..chunks as u16).chain((0..chunks as u16).map(|c| c + 16)).collect();
        let (scale, centre) = (noise(7, count).iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>(), noise(8, count));
        let plan = HeadPlan::new(precision, &channels, &scale, &centre).unwrap();
        let (keys, queries) = (noise(9, heads * capacity * dim), noise(10, heads * group * dim));
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
            Sketch::new(precision, chunks, heads, capacity, upload(&gpu, &padded), upload(&gpu, &all_scales)).unwrap();
        let wide: Vec<u32> = channels.iter().map(|c| u32::from(*c)).collect();
        let tables = Channels {
            channels: upload(&gpu, &[wide.clone(), wide].concat()),
            scale: upload(&gpu, &[scale.clone(), scale.clone()].concat()),
            centre: upload(&gpu, &[centre.clone(), centre.clone()].concat()),
        };
        let found = score(&gpu, &upload(&gpu, &queries), dim, group, &sketch, &tables, len).unwrap();
        let ranked = combine(&gpu, &found, group, len, 4, [0, len]).unwrap();
        let (scores, means): (Vec<f32>, Vec<f32>) =
            (download(&gpu, found.scores.clone()), download(&gpu, ranked.values.clone()));
        for head in 0..heads {
            let rows = head * capacity..head * capacity + len;
            let scales = &scales[rows.start * scale_bytes..rows.end * scale_bytes];
            let view =
                SketchRows::new(precision, chunks, len, &codes[rows.start * bytes..rows.end * bytes], scales).unwrap();
            let mut mean = vec![0.0f32; len];
            for g in 0..group {
                let h = head * group + g;
                let (mut folded, mut want) = (vec![0.0; count], vec![0.0; len]);
                fold_query(&plan, &queries[h * dim..(h + 1) * dim], &mut folded).unwrap();
                naive_score(&view, &folded, &mut want).unwrap();
                want.iter_mut().for_each(|x| *x /= (dim as f32).sqrt());
                for (t, want) in want.iter().enumerate() {
                    let got = scores[h * found.stride + t];
                    assert!((got - want).abs() < 1e-4 * (1.0 + want.abs()), "{precision:?} {h} {t}: {got} {want}");
                }
                let most = want.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
                let total: f32 = want.iter().map(|x| (x - most).exp()).sum();
                let weights = want.iter().map(|x| (x - most).exp() / total / group as f32);
                mean.iter_mut().zip(weights).for_each(|(m, w)| *m += w);
            }
            if group > 1 {
                for (t, want) in mean.iter().enumerate() {
                    let got = means[head * ranked.stride + t];
                    assert!((got - want).abs() < 1e-4 * want, "{precision:?} mean {t}: {got} {want}");
                }
            }
        }
    }
}
