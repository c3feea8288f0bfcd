//! Times the launches of a decode step of one layer: 32 query and 8 KV heads, d 128, bf16, int4 sketch of 32 chunks, N 256.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use cubecl::Device;
use fasa_core::sketch::Precision;
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::combine::combine;
use fasa_cube::select::best;
use fasa_cube::tip::{Channels, Sketch, score};
use fasa_cube::{Format, Gpu};
use std::time::Instant;

fn main() {
    let gpu = Gpu::new(Device::cuda(0).unwrap().client()).unwrap();
    let noise = |n: usize| -> Vec<u8> {
        (0..n as u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 18 | 0x3000_3000).to_le_bytes()).collect()
    };
    let floats =
        |n: usize| -> Vec<u8> { (0..n).flat_map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).to_le_bytes()).collect() };
    let (heads, group, dim, chunks, budget) = (8, 4, 128, 32, 256);
    println!("tokens; microseconds of wall time per launch in a queue: dense, tip, tip+combine, +select, +attend");
    for len in [4096usize, 16_384, 32_768, 65_536, 131_072] {
        let create = |bytes: Vec<u8>| gpu.client.create_from_slice(&bytes);
        let cache = Cache {
            format: Format::Bf16,
            keys: create(noise(heads * len * dim / 2)),
            values: create(noise(heads * len * dim / 2)),
            heads,
            capacity: len,
            dim,
        };
        let codes = create(noise(heads * len * chunks / 4));
        let sketch = Sketch::new(Precision::Int4, chunks, heads, len, codes, create(noise(heads * len / 2))).unwrap();
        let table: Vec<u8> = (0..heads * 2 * chunks).flat_map(|i| ((i % 64) as u32).to_le_bytes()).collect();
        let channels =
            Channels { channels: create(table), scale: create(floats(heads * 64)), centre: create(floats(heads * 64)) };
        let queries = create(floats(heads * group * dim));
        let stage = |upto: usize| {
            if upto == 0 {
                attend(&gpu, &queries, heads * group, &cache, Rows::First(len)).unwrap();
                return;
            }
            let scores = score(&gpu, &queries, dim, group, &sketch, &channels, len).unwrap();
            if upto < 2 {
                return;
            }
            let ranked = combine(&gpu, &scores, group, len, budget, [4, len - 16]).unwrap();
            if upto < 3 {
                return;
            }
            let positions = best(&gpu, &ranked, budget).unwrap();
            if upto < 4 {
                return;
            }
            attend(
                &gpu,
                &queries,
                heads * group,
                &cache,
                Rows::Chosen { positions: &positions, count: budget, lists: 1 },
            )
            .unwrap();
        };
        let sync = || cubecl::future::block_on(gpu.client.sync()).unwrap();
        print!("{len:7}");
        for upto in 0..5 {
            (0..20).for_each(|_| stage(upto));
            sync();
            let start = Instant::now();
            (0..200).for_each(|_| stage(upto));
            sync();
            print!(" {:8.1}", start.elapsed().as_secs_f64() * 1e6 / 200.0);
        }
        println!();
    }
}
