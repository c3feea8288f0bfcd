//! Keys and values in the host's memory, against what a cache on the device gives.
#![cfg(feature = "wgpu")]

mod support;

use fasa_core::sketch::Precision;
use fasa_cube::attend::{Cache, Rows, attend};
use fasa_cube::tier::{BLOCK, Book, HostRows, HostShape, Packet, Slots, place};
use fasa_cube::tip::{Channels, Sketch};
use fasa_cube::{Format, write};
use support::{download, gpu, noise, upload};

/// Numbers as a cache stores them.
fn bytes(format: Format, numbers: &[f32]) -> Vec<u8> {
    match format {
        Format::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Format::F16 => numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Format::Bf16 => numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

/// `[heads, rows, row]` of `[heads, len, row]` bytes.
fn narrow(all: &[u8], [heads, len, row]: [usize; 3], rows: std::ops::Range<usize>) -> Vec<u8> {
    (0..heads).flat_map(|h| all[(h * len + rows.start) * row..(h * len + rows.end) * row].to_vec()).collect()
}

/// Rows that are written in pieces of any length, over the bounds of blocks, are what blocks and single rows read.
#[test]
fn rows_are_what_was_written() {
    let Some(gpu) = gpu() else { return };
    for (format, heads, dim) in [(Format::F32, 2, 6), (Format::F16, 3, 64), (Format::Bf16, 1, 10)] {
        let shape = HostShape { layers: 2, heads, dim, format };
        let (len, row) = (2 * BLOCK + 77, shape.row());
        let mut host = HostRows::new(shape);
        assert!(host.write(0, 0, &vec![0; heads * row], &vec![0; heads * row]).is_err(), "nothing was reserved");
        host.reserve(&gpu.client, len).expect("memory");
        assert_eq!((host.capacity(), host.bytes()), (3 * BLOCK, shape.bytes(len)));
        let all: Vec<[Vec<u8>; 2]> =
            (0..2).map(|l| [0, 1].map(|s| bytes(format, &noise(2 * l + s, heads * len * dim)))).collect();
        for (layer, [keys, values]) in all.iter().enumerate() {
            let mut from = 0;
            for count in [1, 1, 700, BLOCK, 323, len - BLOCK - 1025] {
                let rows = from..from + count;
                let [k, v] = [keys, values].map(|side| narrow(side, [heads, len, row], rows.clone()));
                host.write(layer, from, &k, &v).expect("reserved");
                from += count;
            }
            assert_eq!(from, len);
        }
        for (layer, [keys, values]) in all.iter().enumerate() {
            assert!(host.read(layer, len).expect("there") == [keys.clone(), values.clone()]);
            for (head, t) in [(0, 0), (heads - 1, BLOCK - 1), (0, BLOCK), (heads - 1, len - 1)] {
                let at = (head * len + t) * row..(head * len + t + 1) * row;
                assert_eq!(host.row(layer, head, t), [&keys[at.clone()], &values[at]]);
            }
            let blocks = host.upload(&gpu.client, layer, 1).expect("there");
            for (block, side) in blocks.iter().zip([keys, values]) {
                let got: Vec<u8> = download(&gpu, block);
                assert!(got == narrow(side, [heads, len, row], BLOCK..2 * BLOCK), "{format:?}");
            }
        }
        let keys: Vec<u8> = download(&gpu, &host.upload_keys(&gpu.client, 1, 0).expect("there"));
        assert!(keys == narrow(&all[1][0], [heads, len, row], 0..BLOCK));
        assert!(
            host.upload_keys(&gpu.client, 0, 3).is_err()
                && host.upload(&gpu.client, 0, 3).is_err()
                && host.upload(&gpu.client, 2, 0).is_err()
        );
        assert!(host.write(0, 3 * BLOCK, &vec![0; heads * row], &vec![0; heads * row]).is_err());
        assert!(host.write(0, 0, &vec![0; heads * row], &[]).is_err());
    }
}

/// Beyond the memory that it may take, rows are those of a block before.
#[test]
fn shared_rows() {
    let Some(gpu) = gpu() else { return };
    let shape = HostShape { layers: 2, heads: 1, dim: 4, format: Format::F32 };
    let mut host = HostRows::new(shape);
    host.share_beyond(2 * shape.bytes(BLOCK) + 5);
    host.reserve(&gpu.client, 7 * BLOCK).expect("memory");
    assert_eq!((host.capacity(), host.own(), host.bytes()), (7 * BLOCK, 2 * BLOCK, shape.bytes(2 * BLOCK)));
    let row = [7u8; 16];
    host.write(1, BLOCK + 3, &row, &row).expect("there");
    assert_eq!(host.row(1, 0, 5 * BLOCK + 3), [&row, &row]);
    assert_ne!(host.row(1, 0, 4 * BLOCK + 3)[0], row);
}

/// Steps over rows that come from the host as they are chosen give, to the bit, what the same rows of a cache on the device give.
#[test]
fn steps_are_those_of_a_cache_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let cases = [(Format::F32, 2, 4, 64, 1, 9), (Format::F16, 3, 3, 10, 1, 33), (Format::Bf16, 1, 4, 128, 4, 150)];
    for (format, heads, group, dim, lists, budget) in cases {
        let (len, queries) = (BLOCK + 401, heads * group);
        let shape = HostShape { layers: 1, heads, dim, format };
        let [keys, values] = [1, 2].map(|seed| bytes(format, &noise(seed, heads * len * dim)));
        let mut host = HostRows::new(shape);
        host.reserve(&gpu.client, len).expect("memory");
        host.write(0, 0, &keys, &values).expect("reserved");
        let there =
            Cache { format, keys: upload(&gpu, &keys), values: upload(&gpu, &values), heads, capacity: len, dim };
        let capacity = lists * budget + 50;
        let words = heads * capacity * dim / format.per_word();
        let kept = Cache { format, keys: gpu.words(words), values: gpu.words(words), heads, capacity, dim };
        let mut books = vec![Slots::new(capacity); heads];
        let mut fetched = vec![];
        for step in 0..5 {
            // Half of them change from step to step.
            let at = |list: usize, i: usize| {
                let changes = if i.is_multiple_of(2) { step * 331 } else { 0 };
                ((list * 57 + i * 7 + changes) % len) as u32
            };
            let positions: Vec<u32> = (0..heads * lists * budget).map(|i| at(i / budget, i % budget)).collect();
            let (mut slots, mut missing) = (vec![], vec![]);
            for (head, (book, chosen)) in books.iter_mut().zip(positions.chunks(lists * budget)).enumerate() {
                let mut of_head = vec![];
                book.place(chosen, &mut slots, &mut of_head);
                missing.extend(of_head.into_iter().map(|(position, slot)| [head as u32, position, slot]));
            }
            fetched.push(missing.len());
            let packet = Packet::gather(&host, 0, &slots, &missing, capacity).expect("shapes fit");
            let slots_there = place(&gpu, packet, &kept).expect("shapes fit");
            assert_eq!(download::<u32>(&gpu, &slots_there)[..slots.len()], slots);
            let q = upload(&gpu, &noise(9 + step, queries * dim));
            let run = |cache: &Cache, positions| {
                let rows = Rows::Chosen { positions, count: budget, lists };
                download::<u32>(&gpu, &attend(&gpu, &q, queries, cache, rows).expect("shapes fit"))
            };
            assert!(run(&kept, &slots_there) == run(&there, &upload(&gpu, &positions)), "{format:?}, step {step}");
        }
        assert!(fetched[1..].iter().all(|count| *count > 0 && *count < fetched[0]), "{fetched:?}");
    }
    let host = HostRows::new(HostShape { layers: 1, heads: 1, dim: 3, format: Format::F16 });
    assert!(Packet::gather(&host, 0, &[0], &[], 4).is_err(), "no whole words");
    let packet = |slots: &[u32]| {
        let host = HostRows::new(HostShape { layers: 1, heads: 1, dim: 4, format: Format::F32 });
        Packet::gather(&host, 0, slots, &[], 4).expect("shapes fit")
    };
    let handles = [gpu.words(16), gpu.words(16)];
    let [keys, values] = handles;
    let kept = Cache { format: Format::F32, keys, values, heads: 1, capacity: 4, dim: 4 };
    assert!(place(&gpu, packet(&[4]), &kept).is_err(), "there is no such slot");
    assert!(place(&gpu, packet(&[]), &kept).is_err());
}

/// Sketch rows from keys that begin in the middle of the context are those from all keys.
#[test]
fn sketches_from_pieces() {
    let Some(gpu) = gpu() else { return };
    let (heads, dim, chunks, len) = (2, 16, 4, 90);
    let capacity = 96;
    let keys = noise(5, heads * len * dim);
    let channels = || {
        let table: Vec<u32> =
            (0..heads).flat_map(|h| (0..2 * chunks as u32).map(move |c| (c + h as u32) % 16)).collect();
        let ones = vec![1.0f32; heads * 2 * chunks];
        let zeros = vec![0.0f32; heads * 2 * chunks];
        Channels { channels: upload(&gpu, &table), scale: upload(&gpu, &ones), centre: upload(&gpu, &zeros) }
    };
    for precision in [Precision::Int4, Precision::Int8, Precision::F16] {
        let words = precision.row_bytes(chunks).div_ceil(4);
        let sketch = || {
            let zeros = |words: usize| upload(&gpu, &vec![0u32; words]);
            let (codes, scales) = (zeros(heads * capacity * words), zeros(heads * capacity / 2));
            Sketch::new(precision, chunks, heads, capacity, codes, scales).expect("it fits")
        };
        let cache = |rows: std::ops::Range<usize>| {
            let all: Vec<u8> = keys.iter().flat_map(|x| x.to_le_bytes()).collect();
            let keys = upload(&gpu, &narrow(&all, [heads, len, 4 * dim], rows.clone()));
            Cache { format: Format::F32, values: keys.clone(), keys, heads, capacity: rows.len(), dim }
        };
        let (whole, pieces) = (sketch(), sketch());
        write::write(&gpu, &cache(0..len), &whole, &channels(), 0..len).expect("it fits");
        // A piece of which some rows are there already, one token, an odd beginning.
        for (first, rows) in [(0, 0..40), (20, 40..41), (41, 41..64), (33, 64..90)] {
            let keys = cache(first..rows.end);
            write::write_from(&gpu, &keys, first, &pieces, &channels(), rows).expect("it fits");
        }
        assert!(download::<u32>(&gpu, &whole.codes) == download::<u32>(&gpu, &pieces.codes), "{precision:?}");
        assert!(download::<u32>(&gpu, &whole.scales) == download::<u32>(&gpu, &pieces.scales), "{precision:?}");
        assert!(write::write_from(&gpu, &cache(50..60), 50, &pieces, &channels(), 49..60).is_err());
        assert!(write::write_from(&gpu, &cache(50..60), 50, &pieces, &channels(), 50..61).is_err());
    }
}

/// The device's own book: whatever a step chooses is in the slot that is named for it, once the missing rows are where they belong; the
/// last token's row is always brought, also after the context was cut; what is chosen again and again is not.
#[test]
fn a_book_on_the_device() {
    let Some(gpu) = gpu() else { return };
    for (heads, slots, lists, budget, range) in
        [(2, 64, 1, 16, 90), (1, 40, 2, 20, 60), (3, 300, 1, 9, 5000), (2, 700, 1, 300, 900)]
    {
        let (book, per_head) = (Book::new(&gpu, heads, slots), lists * budget);
        let mut there = vec![vec![None; slots]; heads];
        let mut totals = [0, 0];
        for step in 0..40usize {
            // The context is cut in the middle, and grows again.
            let len = range + if step < 25 { step } else { step - 20 };
            let last = len as u32 - 1;
            let of_list = |head: usize, list: usize| {
                let mut chosen = vec![last];
                // Some are the same in every step.
                chosen.extend((1..budget / 3).map(|i| 3 * i as u32));
                let mut at = (head * 31 + step * 7919 + list * 13) % len;
                while chosen.len() < budget {
                    while chosen.contains(&(at as u32)) {
                        at = (at + 1) % len;
                    }
                    chosen.push(at as u32);
                    at = (at * 31 + 17) % len;
                }
                chosen
            };
            let chosen: Vec<u32> = (0..heads * lists).flat_map(|l| of_list(l / lists, l % lists)).collect();
            let assigned = book.assign(&gpu, &upload(&gpu, &chosen), per_head, &len.into()).expect("it fits");
            let (found, missing) = (download::<u32>(&gpu, &assigned.slots), assigned.missing(&gpu).expect("read"));
            for head in 0..heads {
                let of_head = &missing[head];
                for [position, slot] in of_head {
                    there[head][*slot as usize] = Some((*position, if *position == last { step } else { 0 }));
                }
                totals[0] += per_head - of_head.len();
                totals[1] += of_head.len();
                assert!(of_head.iter().any(|[position, _]| *position == last), "the last row is new");
                let same = |p: u32| p > 0 && p.is_multiple_of(3) && p / 3 < budget as u32 / 3;
                assert!(step == 0 || of_head.iter().all(|[position, _]| !same(*position)), "step {step}: {of_head:?}");
                for (position, slot) in chosen[head * per_head..][..per_head].iter().zip(&found[head * per_head..]) {
                    let (held, when) = there[head][*slot as usize].expect("something lies there");
                    assert_eq!(held, *position, "step {step}, head {head}");
                    assert!(held != last || when == step, "step {step}: an old row of position {held}");
                }
            }
        }
        assert_eq!(book.totals(&gpu).expect("read"), totals.map(|n| n as u64));
        assert!(totals[0] > totals[1] / 4 || slots < 100, "{totals:?}");
    }
    assert!(!Book::fits(&gpu, 10, 11) && !Book::fits(&gpu, 1 << 16, 11));
    let book = Book::new(&gpu, 1, 8);
    assert!(book.assign(&gpu, &upload(&gpu, &[1u32; 9]), 9, &20usize.into()).is_err());
}
