//! Cubes that meet: a step in one launch, against the naive oracle, again and again.
//! Where cubes do not run at the same time, with one cube per list.
#![cfg(feature = "kernels")]
#![allow(clippy::unwrap_used)]

mod support;

use cubecl::server::Handle;
use fasa_core::Rows as CoreRows;
use fasa_core::attend::attend as naive;
use fasa_core::sketch::{HeadPlan, Precision, SketchRows, fold_query, score as naive_score};
use fasa_cube::attend::Cache;
use fasa_cube::step::{Choice, Scratch, step};
use fasa_cube::tip::{Channels, Sketch};
use fasa_cube::{Format, Gpu, Length, write};
use support::{download, gpu, noise, upload};

/// Whether cubes of this device meet others, so that long contexts are tried.
fn meets(gpu: &Gpu) -> bool {
    gpu.traits.together > 0
}

/// Numbers that look random.
fn random(seed: u64, n: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    })
}

/// One test, since one thread of a process may launch cubes that meet.
#[test]
fn cubes_that_meet() {
    let Some(gpu) = gpu() else { return };
    a_step_in_one_launch_is_that_of_the_oracle(gpu);
}

/// A layer with its sketch, on the device and off it.
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    plan: (Vec<u16>, Vec<f32>, Vec<f32>),
    codes: Vec<u8>,
    scales: Vec<u8>,
    cache: Cache,
    sketch: Sketch,
    channels: Channels,
    queries_there: Handle,
    group: usize,
}

impl Layer {
    /// Keys whose size changes from stretch to stretch, as `spread` says; halves as numbers of the cache.
    fn new(gpu: &Gpu, [heads, group, dim, capacity]: [usize; 4], precision: Precision, sharpness: f32) -> Self {
        let half = |x: f32| half::bf16::from_f32(x);
        let chunks = dim / 4;
        let stretch = |i: usize| if (i / dim / 40) % 7 == 3 { 1.5 } else { 0.5 };
        let raw = |seed: u64| random(seed, heads * capacity * dim).enumerate();
        let keys: Vec<half::bf16> = raw(1).map(|(i, x)| half((x - 0.5) * stretch(i))).collect();
        let values: Vec<half::bf16> = raw(2).map(|(_, x)| half(x - 0.5)).collect();
        let queries: Vec<f32> = random(3, heads * group * dim).map(|x| (x - 0.5) * sharpness).collect();
        let channels: Vec<u16> = (0..chunks as u16).chain((0..chunks as u16).map(|c| c + (dim / 2) as u16)).collect();
        let count = 2 * chunks;
        let (scale, centre) = (noise(7, count).iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>(), vec![0.0; count]);
        let wide: Vec<u32> = channels.iter().map(|c| u32::from(*c)).collect();
        let tables = Channels {
            channels: upload(gpu, &wide.repeat(heads)),
            scale: upload(gpu, &scale.repeat(heads)),
            centre: upload(gpu, &centre.repeat(heads)),
        };
        let cache = Cache {
            format: Format::Bf16,
            keys: upload(gpu, &keys),
            values: upload(gpu, &values),
            heads,
            capacity,
            dim,
        };
        let sketch = Sketch::empty(gpu, precision, chunks, heads, capacity).unwrap();
        write::write(gpu, &cache, &sketch, &tables, 0..capacity).unwrap();
        Self {
            keys: keys.iter().map(|x| x.to_f32()).collect(),
            values: values.iter().map(|x| x.to_f32()).collect(),
            queries_there: upload(gpu, &queries),
            queries,
            plan: (channels, scale, centre),
            codes: download(gpu, &sketch.codes),
            scales: download(gpu, &sketch.scales),
            cache,
            sketch,
            channels: tables,
            group,
        }
    }

    /// The mean of the softmaxes of a head's queries.
    fn importance(&self, head: usize, len: usize) -> (Vec<f32>, f32) {
        let (precision, chunks, capacity) = (self.sketch.precision, self.sketch.chunks, self.sketch.capacity);
        let (channels, scale, centre) = &self.plan;
        let plan = HeadPlan::new(precision, channels, scale, centre).unwrap();
        let (bytes, scale_bytes) = (precision.row_bytes(chunks), precision.scale_bytes());
        assert_eq!(bytes % 4, 0);
        let codes = &self.codes[head * capacity * bytes..][..len * bytes];
        let scales = &self.scales[head * capacity * scale_bytes..][..len * scale_bytes];
        let view = SketchRows::new(precision, chunks, len, codes, scales).unwrap();
        let (mut mean, mut largest) = (vec![0.0f32; len], 1.0f32);
        for query in self.queries.chunks(self.cache.dim).skip(head * self.group).take(self.group) {
            let (mut folded, mut scores) = (vec![0.0; 2 * chunks], vec![0.0; len]);
            fold_query(&plan, query, &mut folded).unwrap();
            naive_score(&view, &folded, &mut scores).unwrap();
            scores.iter_mut().for_each(|x| *x /= (query.len() as f32).sqrt());
            let most = scores.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
            let total: f64 = scores.iter().map(|x| f64::from((x - most).exp())).sum();
            largest = scores.iter().fold(largest, |l, x| l.max(x.abs()));
            for (mean, x) in mean.iter_mut().zip(scores) {
                *mean += ((x - most).exp() / total as f32) / self.group as f32;
            }
        }
        (mean, largest)
    }

    /// Whether the result is that of a step over the first `len` tokens.
    fn check(&self, what: &str, len: usize, choice: Choice, positions: &[u32], got: &[f32]) {
        let (dim, capacity) = (self.cache.dim, self.cache.capacity);
        for (head, chosen) in positions.chunks(choice.budget).enumerate() {
            let (importance, largest) = self.importance(head, len);
            let mut taken = vec![false; len];
            chosen.iter().for_each(|t| assert!(!std::mem::replace(&mut taken[*t as usize], true), "{what}: twice {t}"));
            let (sinks, recent) = (0..choice.sinks, len - choice.recent..len);
            assert!(sinks.chain(recent).all(|t| taken[t]), "{what}: a guaranteed token is missing");
            let free = || choice.sinks..len - choice.recent;
            let worst = free().filter(|t| taken[*t]).map(|t| importance[t]).fold(f32::INFINITY, f32::min);
            let missed = free().filter(|t| !taken[*t]).map(|t| importance[t]).fold(f32::NEG_INFINITY, f32::max);
            let allowed = (1e-4 + 2.0 * 0.5f32.powi(11) * largest) * missed.abs();
            assert!(worst >= missed - allowed, "{what}, head {head}: {worst} but not {missed}");
            for h in head * self.group..(head + 1) * self.group {
                let at = head * capacity * dim..(head * capacity + len) * dim;
                let k = CoreRows::contiguous(&self.keys[at.clone()], dim).unwrap();
                let v = CoreRows::contiguous(&self.values[at], dim).unwrap();
                let mut want = vec![0.0; dim];
                naive(&self.queries[h * dim..(h + 1) * dim], k, v, Some(chosen), &mut want).unwrap();
                for (got, want) in got[h * dim..].iter().zip(&want) {
                    assert!((got - want).abs() < 1e-4, "{what}, query head {h}: {got} {want}");
                }
            }
        }
    }
}

/// Runs a step `times` times over each of `lens` tokens, which must give the same every time.
fn steps(gpu: &Gpu, layer: &Layer, lens: &[usize], choice: Choice, times: usize) {
    let (heads, dim, capacity) = (layer.cache.heads, layer.cache.dim, layer.cache.capacity);
    let query_heads = heads * layer.group;
    let kept = Length::upload(gpu, 1);
    let scratch =
        Scratch::new(gpu, query_heads, heads, heads, Length::on_device(kept.clone(), capacity), choice).unwrap();
    let out = gpu.words(query_heads * dim);
    for len in lens {
        fasa_cube::tape::overwrite(&gpu.client, &kept, vec![*len as u32]);
        let mut first: Option<(Vec<f32>, Vec<u32>)> = None;
        for _ in 0..times {
            step(gpu, &layer.queries_there, &layer.cache, &layer.sketch, &layer.channels, &scratch, &out).unwrap();
            let got: (Vec<f32>, Vec<u32>) = (download(gpu, &out), download(gpu, &scratch.positions));
            let got = (got.0, got.1[..heads * choice.budget].to_vec());
            let first = first.get_or_insert_with(|| got.clone());
            assert!(first.0 == got.0 && first.1 == got.1, "{len} tokens: the result changed");
        }
        let (got, positions) = first.unwrap();
        let what = format!("{len} tokens of {capacity}, {heads} heads");
        layer.check(&what, *len, choice, &positions, &got);
        // A length that the host knows.
        let fixed = scratch.with(*len, choice).unwrap();
        step(gpu, &layer.queries_there, &layer.cache, &layer.sketch, &layer.channels, &fixed, &out).unwrap();
        assert_eq!(download::<f32>(gpu, &out), got, "{what}");
    }
}

fn a_step_in_one_launch_is_that_of_the_oracle(mut gpu: Gpu) {
    let choice = |budget| Choice { budget, lists: 1, sinks: 4, recent: 16 };
    // Few cubes per list too, however fast that is.
    gpu.traits.meeting = 1;
    if meets(&gpu) {
        for (shape, precision, sharpness, lens) in [
            ([8, 4, 128, 131_072], Precision::Int4, 3.0, vec![300, 50_001, 131_072]),
            ([3, 2, 64, 9_000], Precision::Int8, 400.0, vec![9_000, 256, 300]),
            ([1, 3, 64, 40_000], Precision::Int4, 0.0, vec![40_000, 2500]),
            ([64, 4, 128, 3_000], Precision::F16, 3.0, vec![3_000, 900]),
            // More query heads than a cube has registers for: several launches.
            ([2, 8, 128, 5_000], Precision::Int4, 20.0, vec![5_000]),
        ] {
            let layer = Layer::new(&gpu, shape, precision, sharpness);
            steps(&gpu, &layer, &lens, choice(256), 40);
            steps(&gpu, &layer, &lens[..1], choice(20), 2);
            eprintln!("{shape:?} {precision:?}: as the oracle");
        }
        return;
    }
    for (shape, precision, sharpness, lens) in [
        ([2, 4, 32, 500], Precision::Int4, 3.0, vec![500, 100, 64]),
        ([2, 4, 32, 1000], Precision::Int4, 400.0, vec![1000]),
        ([1, 2, 32, 2000], Precision::F16, 3.0, vec![2000, 333]),
        ([1, 3, 32, 700], Precision::Int8, 0.0, vec![700]),
    ] {
        gpu.traits.together = shape[0] as u32;
        let layer = Layer::new(&gpu, shape, precision, sharpness);
        steps(&gpu, &layer, &lens, choice(64), 3);
        steps(&gpu, &layer, &lens, choice(21), 2);
        let refused = |len: usize, choice: Choice| {
            let [heads, group, dim, _] = shape;
            let scratch = Scratch::new(&gpu, heads * group, heads, heads, len, choice).unwrap();
            let out = gpu.words(heads * group * dim);
            step(&gpu, &layer.queries_there, &layer.cache, &layer.sketch, &layer.channels, &scratch, &out).is_err()
        };
        assert!(refused(shape[3] + 2, choice(64)) && refused(50, choice(64)) && refused(50, choice(19)));
    }
}
