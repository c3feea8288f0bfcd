//! Times a decode step of one layer on a CUDA device: 32 query and 8 KV heads, 128 dimensions, bf16. `benches/gpu.sh` runs it
//! beside PyTorch, and says what the columns are.
//!
//! Layers take turns, each with a cache of its own, so that the device's own cache does not serve one step what another read.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::{CubeCount, CubeDim, Device, future::block_on};
use fasa_core::sketch::Precision;
use fasa_cube::attend::{Cache, Rows, attend_into};
use fasa_cube::combine::{Importance, combine_into, rank};
use fasa_cube::select::best_into;
use fasa_cube::step::{Choice, Scratch, step};
use fasa_cube::tip::{Channels, Scores, Sketch, score_into, score_stride};
use fasa_cube::{Format, Gpu, Length, Traits};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const QUERY_HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const BUDGET: usize = 256;

/// Samples, of which the median counts.
const SAMPLES: usize = 15;

/// Words that look random: `hash(i) & mask | bits`.
#[cube(launch_unchecked)]
fn noise_kernel(out: &mut [u32], words: u32, mask: u32, bits: u32, seed: u32) {
    let mut i = ABSOLUTE_POS as u32;
    while i < words {
        let mut x = (i + seed) * 0x9e37_79b9;
        x = (x ^ (x >> 16)) * 0x85eb_ca6b;
        x = (x ^ (x >> 13)) * 0xc2b2_ae35;
        out[i as usize] = ((x ^ (x >> 16)) & mask) | bits;
        i += CUBE_COUNT_X * CUBE_DIM_X;
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(from: &[Vector<u32, Const<4>>], to: &mut [Vector<u32, Const<4>>], vectors: u32) {
    let i = ABSOLUTE_POS;
    if i < vectors as usize {
        to[i] = from[i];
    }
}

struct Bench {
    gpu: Gpu,
    seed: u32,
}

/// What a table's row was measured to take, in microseconds.
struct Times {
    /// On the device, replayed from a graph.
    device: f64,
    /// As the host sees it: replayed, and launched one by one.
    replayed: f64,
    launched: f64,
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

impl Bench {
    fn noise(&mut self, words: usize, mask: u32, bits: u32) -> Handle {
        let out = self.gpu.words(words);
        self.seed = self.seed.wrapping_add(0x0123_4567);
        // SAFETY: the buffer has as many words.
        unsafe {
            let buffer = BufferArg::from_raw_parts(out.clone(), words);
            let (count, dim) = (CubeCount::Static(1024, 1, 1), CubeDim::new_1d(256));
            noise_kernel::launch_unchecked(&self.gpu.client, count, dim, buffer, words as u32, mask, bits, self.seed);
        }
        out
    }

    fn sync(&self) {
        block_on(self.gpu.client.sync()).unwrap();
    }

    /// Times `layers` calls of `layer`, per call.
    fn time(&self, layers: usize, layer: impl Fn(usize)) -> Times {
        let client = &self.gpu.client;
        let all = || (0..layers).for_each(&layer);
        client.graph_prepare().unwrap();
        all();
        all();
        self.sync();
        client.start_capture().unwrap();
        all();
        let graph = client.stop_capture().unwrap();
        // SAFETY: the buffers of the graph live as long as `layer`, and nothing else is running.
        let replay = || unsafe { graph.replay() }.unwrap();
        let wall = |run: &dyn Fn()| {
            run();
            self.sync();
            let start = Instant::now();
            run();
            self.sync();
            start.elapsed()
        };
        // Long enough that the first launch and the last wait do not count.
        let repeats = (0.004 / wall(&replay).as_secs_f64()).clamp(1.0, 200.0) as usize;
        let per_call = |time: Duration| time.as_secs_f64() * 1e6 / (layers * repeats) as f64;
        let sample = |run: &dyn Fn()| {
            let samples = (0..SAMPLES).map(|_| per_call(wall(&|| (0..repeats).for_each(|_| run())))).collect();
            median(samples)
        };
        let device = (0..SAMPLES)
            .map(|_| {
                let window = client.profile_start().unwrap();
                (0..repeats).for_each(|_| replay());
                per_call(block_on(client.profile_end(window).unwrap().resolve()).unwrap().duration())
            })
            .collect();
        Times { device: median(device), replayed: sample(&replay), launched: sample(&all) }
    }

    /// Bytes per second that a copy moves, read and written.
    fn bandwidth(&mut self) -> f64 {
        let words = 1usize << 29;
        let (from, to) = (self.noise(words, u32::MAX, 0), self.gpu.words(words));
        let vectors = words / 4;
        let times = self.time(2, |_| {
            // SAFETY: both buffers have as many words.
            unsafe {
                copy_kernel::launch_unchecked(
                    &self.gpu.client,
                    CubeCount::Static((vectors / 512) as u32, 1, 1),
                    CubeDim::new_1d(512),
                    BufferArg::from_raw_parts(from.clone(), vectors),
                    BufferArg::from_raw_parts(to.clone(), vectors),
                    vectors as u32,
                );
            }
        });
        8.0 * words as f64 / times.device * 1e6
    }
}

/// The device as one whose cubes cannot wait for each other: a step takes five launches.
fn apart(gpu: &Gpu) -> Gpu {
    Gpu { traits: Traits { together: 0, ..gpu.traits }, ..gpu.clone() }
}

/// A layer's buffers.
struct Layer {
    cache: Cache,
    queries: Handle,
    out: Handle,
}

/// A sketch to try: its name, format, chunks, sketches per KV head, and how tokens are chosen.
type Preset = (&'static str, Precision, usize, usize, Choice);

fn presets() -> [Preset; 3] {
    let default = Choice { budget: BUDGET, lists: 1, sinks: 4, recent: 16 };
    let paper = Choice { budget: BUDGET, lists: QUERY_HEADS / KV_HEADS, sinks: 0, recent: 1 };
    [
        ("fasa", Precision::Int4, 32, 1, default),
        ("fasa, f16 16 of 64", Precision::F16, 16, 1, default),
        ("fasa, preset paper", Precision::F16, 16, QUERY_HEADS / KV_HEADS, paper),
    ]
}

/// Microseconds of PyTorch by batch and tokens, as `gpu_sdpa.py` writes them.
fn peers() -> HashMap<(usize, usize), f64> {
    let text = std::env::var("FASA_SDPA").ok().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(((words.next()?.parse().ok()?, words.next()?.parse().ok()?), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn main() {
    let gpu = Gpu::new(Device::cuda(0).unwrap().client()).unwrap();
    let mut bench = Bench { gpu, seed: 1 };
    let (bandwidth, peers) = (bench.bandwidth(), peers());
    println!("copy: {:.2} TB/s, {} processors", bandwidth / 1e12, bench.gpu.traits.processors);
    println!(
        "{:>6} {:>8}  {:30} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7}",
        "batch", "tokens", "", "device", "replayed", "launched", "bound", "share", "x SDPA"
    );
    // As in `1x65536 8x4096`.
    let chosen = std::env::var("FASA_SIZES").unwrap_or_default();
    let size = |size: &str| size.split_once('x').and_then(|(b, n)| Some((b.parse().ok()?, n.parse().ok()?)));
    let mut sizes: Vec<(usize, usize)> = chosen.split_whitespace().filter_map(size).collect();
    if sizes.is_empty() {
        let all = "1x4096 1x8192 1x16384 1x32768 1x65536 1x131072 8x4096 8x16384 8x65536";
        sizes.extend(all.split(' ').filter_map(size));
    }
    for (batch, tokens) in sizes {
        table(&mut bench, batch, tokens, bandwidth, peers.get(&(batch, tokens)).copied());
    }
    println!("selection alone, N {BUDGET}; microseconds");
    for rows in [8, 32] {
        for tokens in [32_768usize, 131_072] {
            let stride = score_stride(tokens);
            let sets: Vec<Handle> = (0..8).map(|_| bench.noise(rows * stride, 0x007f_ffff, 0x3f80_0000)).collect();
            let positions = bench.gpu.words(rows * BUDGET);
            let guaranteed = [4, tokens - 16];
            let times = bench.time(sets.len(), |i| {
                let importance = rank(&bench.gpu, &sets[i], rows, tokens, guaranteed).unwrap();
                best_into(&bench.gpu, &importance, BUDGET, &positions).unwrap();
            });
            let Times { device, replayed, launched } = times;
            println!("[{rows:2}, {tokens:6}] device {device:.1}, replayed {replayed:.1}, launched {launched:.1}");
        }
    }
}

/// Dense attention and the presets at one size.
fn table(bench: &mut Bench, batch: usize, tokens: usize, bandwidth: f64, peer: Option<f64>) {
    let (heads, query_heads) = (batch * KV_HEADS, batch * QUERY_HEADS);
    let words = heads * tokens * DIM / 2;
    let layers = (6usize << 30).div_ceil(words * 8).clamp(4, 32);
    let made: Vec<Layer> = (0..layers)
        .map(|_| Layer {
            // Numbers of size 0.5 to 1.
            cache: Cache {
                format: Format::Bf16,
                keys: bench.noise(words, 0x807f_807f, 0x3f00_3f00),
                values: bench.noise(words, 0x807f_807f, 0x3f00_3f00),
                heads,
                capacity: tokens,
                dim: DIM,
            },
            queries: bench.noise(query_heads * DIM, 0x807f_ffff, 0x3f00_0000),
            out: bench.gpu.words(query_heads * DIM),
        })
        .collect();
    let row = |name: &str, times: Times, bytes: usize| {
        let bound = bytes as f64 / bandwidth * 1e6;
        let Times { device, replayed, launched } = times;
        let against = peer.map_or(String::new(), |peer| format!("{:.2}", peer / device));
        println!(
            "{batch:6} {tokens:8}  {name:30} {device:9.1} {replayed:9.1} {launched:9.1} {bound:9.1} {:5.0}% {against:>7}",
            100.0 * bound / device
        );
    };
    if let Some(peer) = peer {
        println!("{batch:6} {tokens:8}  {:30} {peer:9.1}", "PyTorch SDPA");
    }
    let kept = Length::on_device(Length::upload(&bench.gpu, tokens), tokens);
    let dense = bench.time(layers, |i| {
        let Layer { cache, queries, out } = &made[i];
        attend_into(&bench.gpu, queries, query_heads, cache, Rows::Kept(&kept), out).unwrap();
    });
    row("dense", dense, words * 8);
    for (name, precision, chunks, per_head, choice) in presets() {
        let sketches = heads * per_head;
        let row_words = Sketch::row_words(precision, chunks);
        let channels = {
            let numbers: Vec<u8> =
                (0..sketches * 2 * chunks).flat_map(|i| ((i % (2 * chunks)) as u32).to_le_bytes()).collect();
            Channels {
                channels: bench.gpu.client.create_from_slice(&numbers),
                scale: bench.noise(sketches * 2 * chunks, 0x007f_ffff, 0x3f00_0000),
                centre: bench.gpu.words(sketches * 2 * chunks),
            }
        };
        // Codes of every value, or halves of size 0.5 to 1; scales of about 0.1.
        let (mask, bits) = if precision == Precision::Int4 { (u32::MAX, 0) } else { (0x83ff_83ff, 0x3800_3800) };
        let sketched: Vec<Sketch> = (0..layers)
            .map(|_| {
                let codes = bench.noise(sketches * tokens * row_words, mask, bits);
                let scales = bench.noise(sketches * tokens / 2, 0x03ff_03ff, 0x2c00_2c00);
                Sketch::new(precision, chunks, sketches, tokens, codes, scales).unwrap()
            })
            .collect();
        if std::env::var("FASA_STAGES").is_ok() && per_head == 1 {
            stages(bench, &made, &sketched, &channels, name);
        }
        let scale_bytes = precision.scale_bytes();
        let sketch_bytes = sketches * tokens * (precision.row_bytes(chunks) + scale_bytes);
        let bytes = sketch_bytes + heads * choice.lists * BUDGET * DIM * 4;
        let steps = |gpu: &Gpu| {
            let scratch = Scratch::new(gpu, query_heads, sketches, heads, kept.clone(), choice).unwrap();
            bench.time(layers, |i| {
                let Layer { cache, queries, out } = &made[i];
                step(gpu, queries, cache, &sketched[i], &channels, &scratch, out).unwrap();
            })
        };
        if per_head == 1 {
            row(name, steps(&bench.gpu), bytes);
        }
        row(&format!("{name}, 5 launches"), steps(&apart(&bench.gpu)), bytes);
    }
}

/// What the launches of a step add up to, on the device.
fn stages(bench: &mut Bench, made: &[Layer], sketched: &[Sketch], channels: &Channels, name: &str) {
    let cache = &made[0].cache;
    let (heads, tokens) = (cache.heads, cache.capacity);
    let query_heads = heads * QUERY_HEADS / KV_HEADS;
    let group = query_heads / heads;
    let gpu = &apart(&bench.gpu);
    let scores = Scores::empty(gpu, heads, group, tokens.into());
    let importance = Importance::empty(gpu, &scores, heads).guarantee(4, 16);
    let positions = gpu.words(heads * BUDGET);
    print!("  {name}:");
    for (last, label) in ["scores", "+ importance", "+ selection", "+ attention"].into_iter().enumerate() {
        let times = bench.time(made.len(), |i| {
            let Layer { cache, queries, out } = &made[i];
            score_into(gpu, queries, DIM, &sketched[i], channels, &scores).unwrap();
            if last > 0 {
                combine_into(gpu, &scores, &importance).unwrap();
            }
            if last > 1 {
                best_into(gpu, &importance, BUDGET, &positions).unwrap();
            }
            if last > 2 {
                let rows = Rows::Chosen { positions: &positions, count: BUDGET, lists: 1 };
                attend_into(gpu, queries, query_heads, cache, rows, out).unwrap();
            }
        });
        print!(" {label} {:.1}", times.device);
    }
    println!();
}
