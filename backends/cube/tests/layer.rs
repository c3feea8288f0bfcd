//! What stands around attention in a layer, against plain arithmetic on the host.
#![cfg(feature = "wgpu")]

mod support;

use fasa_core::sketch::{HeadPlan, Precision, quantize_row};
use fasa_cube::append::{Tokens, append, append_before};
use fasa_cube::attend::Cache;
use fasa_cube::linear::{Finish, Norm, Weight, linear};
use fasa_cube::rows::{Softmax, rms_norm};
use fasa_cube::tape::{Tape, overwrite};
use fasa_cube::tip::{Channels, Sketch};
use fasa_cube::{Format, Length, write};
use support::{download, gpu, noise, store, upload};

const EPS: f32 = 1e-5;

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{what} {i}: {got} {want}");
    }
}

fn normed(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let rows = x.chunks(weight.len()).flat_map(|row| {
        let square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        row.iter().zip(weight).map(move |(x, w)| x / (square + EPS).sqrt() * w)
    });
    rows.collect()
}

fn products(x: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
    x.chunks(inputs).flat_map(|x| weight.chunks(inputs).map(move |w| dot(x, w))).collect()
}

#[test]
fn projections() {
    let Some(gpu) = gpu() else { return };
    for (tokens, inputs, outputs) in [(1, 256, 512), (3, 64, 7), (1, 6, 2), (2, 1030, 34), (1, 2048, 10)] {
        let (x, norm, residual) = (noise(1, tokens * inputs), noise(2, inputs), noise(3, tokens * outputs));
        let scale = 1.0 / (inputs as f32).sqrt();
        let numbers: Vec<f32> = noise(4, outputs * inputs).iter().map(|w| w * scale).collect();
        let (x_there, residual_there) = (upload(&gpu, &x), upload(&gpu, &residual));
        let norm_there = Norm { weight: upload(&gpu, &norm), eps: EPS };
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let what = format!("{format:?}, {tokens} tokens, {inputs} to {outputs}");
            let (numbers, rounded) = store(&gpu, format, &numbers);
            let weight = Weight { format, numbers, outputs, inputs };
            let run = |norm: Option<&Norm>, finish: &Finish| -> Vec<f32> {
                download(&gpu, &linear(&gpu, &x_there, tokens, &weight, norm, finish).expect("shapes fit"))
            };
            let want = products(&x, &rounded, inputs);
            close(&what, &run(None, &Finish::Plain), &want);
            let added: Vec<f32> = want.iter().zip(&residual).map(|(a, b)| a + b).collect();
            close(&what, &run(None, &Finish::Add(residual_there.clone())), &added);
            let want = products(&normed(&x, &norm), &rounded, inputs);
            close(&what, &run(Some(&norm_there), &Finish::Plain), &want);
            if outputs % 2 == 0 {
                let silu = |x: f32| x / (1.0 + (-x).exp());
                let gate = |row: &[f32]| -> Vec<f32> {
                    let (gates, up) = row.split_at(outputs / 2);
                    gates.iter().zip(up).map(|(g, u)| silu(*g) * u).collect()
                };
                let want: Vec<f32> = want.chunks(outputs).flat_map(gate).collect();
                close(&what, &run(Some(&norm_there), &Finish::Gate), &want);
            }
        }
    }
    let weight = Weight { format: Format::F16, numbers: upload(&gpu, &[0u32; 9]), outputs: 2, inputs: 3 };
    let odd = linear(&gpu, &upload(&gpu, &[0.0f32; 3]), 1, &weight, None, &Finish::Plain);
    assert!(odd.is_err_and(|e| e.to_string().contains("32-bit words")));
}

#[test]
fn norms() {
    let Some(gpu) = gpu() else { return };
    for (rows, width) in [(1, 256), (37, 300), (5, 7)] {
        let (x, weight) = (noise(5, rows * width), noise(6, width));
        let got = rms_norm(&gpu, &upload(&gpu, &x), &upload(&gpu, &weight), rows, width, EPS).expect("shapes fit");
        close("norm", &download(&gpu, &got), &normed(&x, &weight));
    }
}

/// Tiles of scores become the weights of one softmax over all of them, later keys left out.
#[test]
fn softmaxes_in_tiles() {
    let Some(gpu) = gpu() else { return };
    let (heads, queries) = (3, 5);
    let rows = heads * queries;
    let (before, after) = (300, queries);
    let (first, second) = (noise(7, rows * before), noise(8, rows * after));
    let (first_there, second_there) = (upload(&gpu, &first), upload(&gpu, &second));
    let tile = |earlier: Option<&Softmax>, scores, count: usize, seen| {
        Softmax::tile(&gpu, earlier, scores, [rows, count], queries, seen).expect("shapes fit")
    };
    let state = tile(None, &first_there, before, before);
    let end = tile(Some(&state), &second_there, after, 0);
    let (early, late): (Vec<f32>, Vec<f32>) = (download(&gpu, &first_there), download(&gpu, &second_there));
    let (shrink, total): (Vec<f32>, Vec<f32>) = (download(&gpu, &end.shrink), download(&gpu, &end.total));
    for row in 0..rows {
        let seen = row % queries + 1;
        let scores = first[row * before..(row + 1) * before].iter().chain(&second[row * after..row * after + seen]);
        let most = scores.clone().fold(f32::MIN, |m, x| m.max(*x));
        let sum: f32 = scores.clone().map(|x| (x - most).exp()).sum();
        let want: Vec<f32> = scores.map(|x| (x - most).exp() / sum).collect();
        let earlier = early[row * before..(row + 1) * before].iter().map(|w| w * shrink[row] / total[row]);
        let got: Vec<f32> =
            earlier.chain(late[row * after..row * after + seen].iter().map(|w| w / total[row])).collect();
        close(&format!("row {row}"), &got, &want);
        assert!(late[row * after + seen..(row + 1) * after].iter().all(|w| *w == 0.0), "row {row} sees the future");
    }
}

/// Queries and keys turn, values do not, and nothing else in the cache changes.
#[test]
fn tokens_are_appended() {
    let Some(gpu) = gpu() else { return };
    let (query_heads, heads, capacity) = (6, 2, 9);
    for (dim, turning, new, position) in [(16, 16, 1, 0), (16, 16, 3, 6), (10, 6, 2, 1), (8, 0, 1, 8)] {
        let half = turning / 2;
        let all = query_heads + 2 * heads;
        let (qkv, cos, sin) = (noise(11, new * all * dim), noise(12, new * half.max(1)), noise(13, new * half.max(1)));
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let (keys, mut want_keys) = store(&gpu, format, &noise(14, heads * capacity * dim));
            let (values, mut want_values) = store(&gpu, format, &noise(15, heads * capacity * dim));
            let cache = Cache { format, keys, values, heads, capacity, dim };
            let [qkv_there, cos_there, sin_there] = [&qkv, &cos, &sin].map(|x| upload(&gpu, x));
            let tokens = Tokens { qkv: &qkv_there, cos: &cos_there, sin: &sin_there, turning, new };
            let end = Length::on_device(Length::upload(&gpu, position + new), capacity);
            let queries = match new {
                1 => append_before(&gpu, tokens, query_heads, &cache, &end),
                _ => append(&gpu, tokens, query_heads, &cache, position),
            };
            let queries: Vec<f32> = download(&gpu, &queries.expect("shapes fit"));
            let mut want_queries = vec![];
            for (t, token) in qkv.chunks(all * dim).enumerate() {
                for (h, x) in token.chunks(dim).enumerate() {
                    let mut x = x.to_vec();
                    for i in (0..half).filter(|_| h < query_heads + heads) {
                        let (a, b, cos, sin) = (x[i], x[i + half], cos[t * half + i], sin[t * half + i]);
                        (x[i], x[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                    let row = |head: usize| (head * capacity + position + t) * dim..;
                    match h {
                        _ if h < query_heads => want_queries.extend(x),
                        _ if h < query_heads + heads => want_keys[row(h - query_heads)][..dim].copy_from_slice(&x),
                        _ => want_values[row(h - query_heads - heads)][..dim].copy_from_slice(&x),
                    }
                }
            }
            let what = format!("{format:?}, {dim} dimensions, {turning} turn, {new} at {position}");
            close(&what, &queries, &want_queries);
            for (kept, want) in [(&cache.keys, want_keys), (&cache.values, want_values)] {
                let bits: Vec<u16> = download(&gpu, kept);
                let got: Vec<f32> = match format {
                    Format::F32 => download(&gpu, kept),
                    Format::F16 => bits.iter().map(|b| half::f16::from_bits(*b).to_f32()).collect(),
                    Format::Bf16 => bits.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect(),
                };
                // Half a place of the last digit.
                let step = [1e-6, 5e-4, 4e-3]
                    [[Format::F32, Format::F16, Format::Bf16].iter().position(|f| *f == format).expect("one")];
                let near = |got: f32, want: f32| (got - want).abs() <= step * want.abs().max(0.1);
                assert!(got.iter().zip(&want).all(|(g, w)| near(*g, *w)), "{what}");
            }
        }
    }
    let cache = Cache {
        format: Format::F32,
        keys: upload(&gpu, &[0.0f32; 8]),
        values: upload(&gpu, &[0.0f32; 8]),
        heads: 1,
        capacity: 2,
        dim: 4,
    };
    let there = upload(&gpu, &[0.0f32; 24]);
    let tokens = Tokens { qkv: &there, cos: &there, sin: &there, turning: 4, new: 2 };
    assert!(append(&gpu, tokens, 1, &cache, 1).is_err());
}

/// Rows of every format, in pieces that begin and end at odd tokens, bit for bit as `fasa-core` writes them.
#[test]
fn sketch_rows_are_those_of_the_core() {
    let Some(gpu) = gpu() else { return };
    let (dim, heads, capacity) = (32, 2, 20);
    for (precision, chunks, per_head) in [
        (Precision::Int4, 16, 1),
        (Precision::Int4, 5, 2),
        (Precision::Int8, 7, 1),
        (Precision::F16, 8, 3),
        (Precision::F32, 3, 1),
    ] {
        let count = 2 * chunks;
        let sketches = heads * per_head;
        let plans: Vec<(Vec<u16>, Vec<f32>, Vec<f32>)> = (0..sketches)
            .map(|s| {
                let channels = (0..chunks as u16).map(|c| (c + s as u16) % 16);
                let channels = channels.clone().chain(channels.map(|c| c + 16)).collect();
                let scale = noise(20 + s, count).iter().map(|x| x.abs() + 0.5).collect();
                (channels, scale, noise(30 + s, count))
            })
            .collect();
        let tables = Channels {
            channels: upload(&gpu, &plans.iter().flat_map(|p| p.0.iter().map(|c| u32::from(*c))).collect::<Vec<_>>()),
            scale: upload(&gpu, &plans.iter().flat_map(|p| p.1.clone()).collect::<Vec<_>>()),
            centre: upload(&gpu, &plans.iter().flat_map(|p| p.2.clone()).collect::<Vec<_>>()),
        };
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let mut keys = noise(9, heads * capacity * dim);
            keys[3] = f32::NAN;
            keys[dim + 17] = 1e6;
            let (stored, rounded) = store(&gpu, format, &keys);
            let cache = Cache { format, keys: stored.clone(), values: stored, heads, capacity, dim };
            let words = Sketch::row_words(precision, chunks);
            let (codes, scales) = (vec![0u32; sketches * capacity * words], vec![0u32; sketches * capacity / 2]);
            let (codes, scales) = (upload(&gpu, &codes), upload(&gpu, &scales));
            let sketch = Sketch::new(precision, chunks, sketches, capacity, codes, scales).expect("shapes fit");
            for rows in [0..7, 7..8, 8..9, 9..9, 9..20] {
                let end = Length::on_device(Length::upload(&gpu, rows.end), capacity);
                let written = match rows.len() {
                    1 => write::write_last(&gpu, &cache, &sketch, &tables, &end),
                    _ => write::write(&gpu, &cache, &sketch, &tables, rows),
                };
                written.expect("shapes fit");
            }
            let (codes, scales): (Vec<u8>, Vec<u8>) = (download(&gpu, &sketch.codes), download(&gpu, &sketch.scales));
            let (bytes, scale_bytes) = (precision.row_bytes(chunks), precision.scale_bytes());
            for (s, (channels, scale, centre)) in plans.iter().enumerate() {
                let plan = HeadPlan::new(precision, channels, scale, centre).expect("valid");
                for t in 0..capacity {
                    let at = s * capacity + t;
                    let key = &rounded[(s / per_head * capacity + t) * dim..][..dim];
                    let (mut code, mut step) = (vec![0; bytes], vec![0; scale_bytes]);
                    quantize_row(&plan, key, &mut code, &mut step).expect("it fits");
                    let what = format!("{precision:?} of {format:?}, sketch {s}, token {t}");
                    assert_eq!(codes[at * words * 4..][..bytes], code, "{what}");
                    assert_eq!(scales[at * 2..][..scale_bytes], step, "{what}");
                }
            }
        }
    }
    let small = Cache {
        format: Format::F32,
        keys: upload(&gpu, &[0.0f32; 8]),
        values: upload(&gpu, &[0.0f32; 8]),
        heads: 1,
        capacity: 2,
        dim: 4,
    };
    let sketch = Sketch::empty(&gpu, Precision::F32, 1, 1, 2).expect("valid");
    let nothing = upload(&gpu, &[0u32; 2]);
    let tables = Channels { channels: nothing.clone(), scale: nothing.clone(), centre: nothing };
    assert!(write::write(&gpu, &small, &sketch, &tables, 1..3).is_err());
}

/// Launches run again with what was written into their inputs since.
#[test]
fn a_tape_reads_its_inputs_again() {
    let Some(gpu) = gpu() else { return };
    let (capacity, dim) = (8, 4);
    let mut want = vec![0.0f32; capacity * dim];
    let cache =
        Cache { format: Format::F32, keys: upload(&gpu, &want), values: upload(&gpu, &want), heads: 1, capacity, dim };
    let (qkv, len) = (upload(&gpu, &[1.0f32; 12]), Length::upload(&gpu, 1));
    let (end, angles) = (Length::on_device(len.clone(), capacity), upload(&gpu, &[0.0f32]));
    let tokens = Tokens { qkv: &qkv, cos: &angles, sin: &angles, turning: 0, new: 1 };
    let launches =
        || -> Result<_, Box<dyn std::error::Error + Send + Sync>> { Ok(append_before(&gpu, tokens, 1, &cache, &end)?) };
    let (tape, queries) = Tape::record(&gpu.client, launches, |_| Ok(())).expect("it records");
    want[..dim].fill(1.0);
    for row in [1, 2, 5] {
        let numbers = noise(row, 12);
        overwrite(&gpu.client, &qkv, numbers.iter().map(|x| x.to_bits()).collect());
        overwrite(&gpu.client, &len, vec![row as u32 + 1]);
        tape.run().expect("it runs");
        want[row * dim..(row + 1) * dim].copy_from_slice(&numbers[dim..2 * dim]);
        assert_eq!(download::<f32>(&gpu, &queries), numbers[..dim], "row {row}");
        assert_eq!(download::<f32>(&gpu, &cache.keys), want, "row {row}");
    }
}
