//! Rows in memory, moved and overwritten.

use super::*;
use burn::tensor::TensorData;

fn config() -> ModelConfig {
    let json = include_bytes!("../../../fixtures/nano/config.json");
    ModelConfig::from_json(json, Path::new("config.json")).expect("valid")
}

fn cache(capacity: usize) -> KvCache {
    KvCache::new(&config(), capacity, Dtype::F32, &Device::flex()).expect("f32 runs everywhere")
}

fn append(cache: &mut KvCache, rows: std::ops::Range<usize>) {
    let device = Device::flex();
    let (config, new) = (config(), rows.len());
    let shape = [config.num_key_value_heads, new, config.head_dim];
    let number = |head: usize, row: usize, d: usize| (head * 1000 + row * 10 + d) as f32;
    for layer in 0..config.num_hidden_layers {
        let numbers = (0..shape[0])
            .flat_map(|h| rows.clone().flat_map(move |r| (0..shape[2]).map(move |d| number(h, r, d) + layer as f32)));
        let keys = Tensor::from_data(TensorData::new(numbers.collect::<Vec<f32>>(), shape), &device);
        cache.reserve(new).expect("memory");
        cache.write(layer, keys.clone(), keys.neg()).expect("written");
    }
    cache.advance(new);
}

fn rows(cache: &KvCache, layer: usize) -> (Vec<f32>, Vec<f32>) {
    let (keys, values) = cache.rows(layer).expect("rows");
    (keys.into_data().try_to_vec().expect("f32"), values.into_data().try_to_vec().expect("f32"))
}

#[test]
fn appends_in_pieces_and_growing_equal_one_append() {
    let mut whole = cache(40);
    append(&mut whole, 0..37);
    let mut pieces = cache(1);
    for piece in [0..1, 1..2, 2..9, 9..10, 10..37] {
        append(&mut pieces, piece);
    }
    for layer in [0, 5] {
        assert_eq!(rows(&whole, layer), rows(&pieces, layer));
    }
}

/// As a cache does that grows out of memory: the rows stay, and what follows is appended behind them.
#[test]
fn rows_move_to_a_second_tier() {
    let folder = std::env::temp_dir();
    let (mut here, mut there) = (cache(40), cache(4));
    append(&mut here, 0..37);
    append(&mut there, 0..21);
    there.move_to(&folder, 22).expect("a folder for temporary files");
    append(&mut there, 21..37);
    assert!(here.tier().is_none() && there.tier().is_some_and(|tier| tier.place == TierPlace::File(&folder)));
    for layer in [0, 5] {
        assert_eq!(rows(&here, layer), rows(&there, layer));
    }
    let mut empty = cache(4);
    empty.move_to(Path::new("no/such/folder"), 4).expect_err("no folder");
    append(&mut empty, 0..37);
    assert_eq!(rows(&empty, 1), rows(&here, 1));
}

#[test]
fn truncated_rows_are_overwritten() {
    let mut cache = cache(8);
    append(&mut cache, 0..6);
    let before = rows(&cache, 3);
    cache.truncate(2);
    assert_eq!(cache.len(), 2);
    append(&mut cache, 2..6);
    assert_eq!(rows(&cache, 3), before);
}
