//! A tier against the same rows in memory: the same bytes come out, or an error.

use super::file::SEGMENT;
use super::*;
use crate::fasa::tests::{Layer, noise};
use crate::layer::LayerSketch;
use crate::{causal_attention, dense_decode, fasa_decode};
use fasa_core::Scope;
use fasa_core::config::FasaConfig;
use fasa_core::policy::OwnedPlan;
use half::f16;

fn folder() -> PathBuf {
    std::env::temp_dir()
}

fn shape_of(layer: &Layer, layers: usize) -> TierShape {
    let format = if layer.halves.is_some() { Format::F16 } else { Format::F32 };
    TierShape { layers, kv_heads: layer.kv_heads, dim: layer.dim, format }
}

/// Rows `rows` of one of the layer's arrays, `[kv_heads, rows, dim]`.
fn part<T: Copy>(layer: &Layer, all: &[T], rows: Range<usize>) -> Vec<T> {
    let of_head = |head: usize| {
        let start = head * layer.capacity;
        &all[(start + rows.start) * layer.dim..(start + rows.end) * layer.dim]
    };
    (0..layer.kv_heads).flat_map(of_head).copied().collect()
}

fn write(tier: &Tier, layer: &Layer, index: usize, rows: Range<usize>) -> Result<()> {
    match &layer.halves {
        Some([keys, values]) => {
            let (keys, values) = (part(layer, keys, rows.clone()), part(layer, values, rows.clone()));
            tier.write(index, rows.start, (&keys[..]).into(), (&values[..]).into())
        }
        None => {
            let (keys, values) = (part(layer, &layer.keys, rows.clone()), part(layer, &layer.values, rows.clone()));
            tier.write(index, rows.start, (&keys[..]).into(), (&values[..]).into())
        }
    }
}

/// All rows of the layer as layer `index` of a tier, written in pieces of odd lengths while the tier grows.
fn tier_of(layer: &Layer, index: usize) -> Tier {
    let mut tier = Tier::create(&folder(), shape_of(layer, index + 2)).expect("a folder for temporary files");
    let (mut from, mut piece) = (0, 1);
    while from < layer.len {
        let to = (from + piece).min(layer.len);
        tier.reserve(to).expect("room");
        write(&tier, layer, index, from..to).expect("written");
        (from, piece) = (to, 3 * piece % 701 + 1);
    }
    tier
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn attention_is_that_of_rows_in_memory() {
    for (kv_heads, group, dim, len, half) in [
        (1, 1, 2, 1, false),
        (2, 4, 16, 65, true),
        (3, 2, 6, SEGMENT, true),
        (2, 2, 64, SEGMENT + 1, false),
        (2, 4, 64, 3 * SEGMENT - 7, true),
        (1, 8, 24, 2500, false),
    ] {
        let layer = Layer::random(kv_heads, group, dim, len, Scope::KvHead, len as u64).rounded(half);
        let tier = tier_of(&layer, 1);
        for (window, cap) in [(usize::MAX, 0.0), (100, 0.0), (usize::MAX, 5.0)] {
            let there = tier.layer(1, len).expect("rows").within(window).capped(cap);
            let here = layer.cache().within(window).capped(cap);
            let (mut want, mut got) = (vec![0.0; layer.queries.len()], vec![0.0; layer.queries.len()]);
            dense_decode(&layer.queries, &here, &mut want).expect("shapes");
            there.dense_decode(&layer.queries, &mut got).expect("shapes");
            assert_eq!(bits(&got), bits(&want), "dense, {kv_heads} {group} {dim} {len} {window} {cap}");

            let heads = kv_heads * group;
            let new = len.min(300);
            let queries: Vec<f32> = noise(5).take(new * heads * dim).collect();
            let (mut want, mut got) = (vec![0.0; queries.len()], vec![0.0; queries.len()]);
            causal_attention(&queries, heads, &here, &mut want).expect("shapes");
            there.causal_attention(&queries, heads, &mut got).expect("shapes");
            assert_eq!(bits(&got), bits(&want), "causal, {kv_heads} {group} {dim} {len} {window} {cap}");
        }
    }
}

/// Steps with other queries each time, so that rows are chosen, kept and dropped; one row is written between two steps.
#[test]
fn a_sparse_step_is_that_of_rows_in_memory() {
    for (scope, half, budget) in [
        (Scope::KvHead, true, 40),
        (Scope::QueryHead, false, 40),
        // More than there are slots at first, and a share of the context that grows.
        (Scope::KvHead, false, 700),
    ] {
        let (len, dim) = (2000, 32);
        let mut layer = Layer::random(2, 4, dim, len, Scope::KvHead, 9).rounded(half);
        let config = FasaConfig { token_scope: scope, ..FasaConfig::DEFAULT };
        let plan = OwnedPlan::new(&layer.profile.view().expect("valid"), config).expect("fits");
        let view = plan.view();
        let (codes, scales) = layer.sketch(&view);
        let sketch = LayerSketch::new(&codes, &scales, config.precision, view.chunks(), view.rows(), layer.capacity);
        let sketch = sketch.expect("fits");
        let tier = tier_of(&layer, 0);
        for step in 0..30u64 {
            let seen = len - 30 + step as usize;
            layer.queries = noise(1000 + step / 3).take(layer.queries.len()).collect();
            write(&tier, &layer, 0, seen - 1..seen).expect("written");
            let cache = match &layer.halves {
                Some([keys, values]) => crate::LayerCache::new(&keys[..], &values[..], 2, layer.capacity, dim, seen),
                None => crate::LayerCache::new(&layer.keys[..], &layer.values[..], 2, layer.capacity, dim, seen),
            };
            let (mut want, mut got) = (vec![0.0; layer.queries.len()], vec![0.0; layer.queries.len()]);
            let here = fasa_decode(0, &layer.queries, &cache.expect("fits"), &sketch, &view, budget, &mut want);
            let there = tier.layer(0, seen).expect("rows");
            let there = there.fasa_decode(&layer.queries, &sketch, &view, budget, &mut got);
            assert_eq!(there.expect("runs"), here.expect("runs"));
            assert_eq!(bits(&got), bits(&want), "{scope:?}, step {step}");
        }
        let traffic = tier.traffic();
        let sets = scope.rows(8, 2) as u64;
        assert_eq!(traffic.rows_at_hand + traffic.rows_fetched, 30 * sets * budget as u64);
        // Every query was asked three times, and the last rows were just written.
        assert!(traffic.hit_rate().expect("chosen") > 0.6, "{traffic:?}");
        assert!(tier.resident_bytes() > 0);
    }
}

#[test]
fn rows_come_back() {
    let layer = Layer::random(2, 1, 8, SEGMENT + 40, Scope::KvHead, 3).rounded(true);
    let tier = tier_of(&layer, 0);
    let rows = SEGMENT - 11..SEGMENT + 20;
    let bytes = 2 * rows.len() * 16;
    let (mut keys, mut values) = (vec![0; bytes], vec![0; bytes]);
    tier.read(0, rows.clone(), &mut keys, &mut values).expect("there");
    let [want_keys, want_values] = layer.halves.as_ref().expect("rounded").each_ref();
    let want = |all: &[f16]| bytemuck::cast_slice(&part(&layer, all, rows.clone())).to_vec();
    assert_eq!((keys, values), (want(want_keys), want(want_values)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = TierShape { layers: 2, kv_heads: 2, dim: 4, format: Format::F32 };
    let mut tier = Tier::create(&folder(), shape).expect("a folder for temporary files");
    let (numbers, halves) = (vec![0.0f32; 16], vec![f16::ZERO; 16]);
    let write =
        |tier: &Tier, layer, position, numbers: &[f32]| tier.write(layer, position, numbers.into(), numbers.into());
    assert!(write(&tier, 0, 0, &numbers).is_err(), "nothing is reserved");
    tier.reserve(3).expect("room");
    assert_eq!(tier.capacity(), SEGMENT);
    write(&tier, 1, 0, &numbers).expect("fits");
    for (layer, position, count) in [(2, 0, 16), (0, SEGMENT - 1, 16), (0, 0, 15), (0, 0, 0)] {
        assert!(write(&tier, layer, position, &numbers[..count]).is_err(), "{layer} {position} {count}");
    }
    assert!(tier.write(0, 0, (&halves[..]).into(), (&halves[..]).into()).is_err(), "another format");
    for (layer, len) in [(0, 0), (2, 1), (0, SEGMENT + 1)] {
        assert!(tier.layer(layer, len).is_err(), "{layer} {len}");
    }
}

#[test]
fn a_folder_that_takes_no_file_is_named() {
    let shape = TierShape { layers: 1, kv_heads: 1, dim: 2, format: Format::F32 };
    let error = Tier::create(Path::new("no/such/folder"), shape).expect_err("no such folder").to_string();
    assert!(error.contains("`no/such/folder`") && error.contains("--cache-dir"), "{error}");
}

/// A file that was cut, or lengthened, is an error of whatever comes next, also once it is as long as before through what
/// this program itself wrote.
#[test]
fn a_file_that_was_changed_is_noticed() {
    let layer = Layer::random(2, 2, 16, 2 * SEGMENT, Scope::KvHead, 3);
    let changed = |result: Result<()>| matches!(result, Err(Error::Changed { .. }));
    for len in [0, 1, 1000, 1 << 30] {
        let mut tier = tier_of(&layer, 0);
        let there = tier.layer(0, layer.len).expect("rows");
        let mut out = vec![0.0; layer.queries.len()];
        there.dense_decode(&layer.queries, &mut out).expect("whole");
        tier.file.handle().set_len(len).expect("cut");
        if len < 1 << 30 {
            // A step that had begun before.
            let error = there.dense_decode(&layer.queries, &mut out).expect_err("cut").to_string();
            assert!(error.contains("instead of") && error.contains("run again"), "{error}");
        }
        assert!(changed(tier.layer(0, layer.len).map(drop)), "{len}");
        // The last row of the file.
        assert!(changed(write(&tier, &layer, 1, layer.len - 1..layer.len)), "{len}");
        assert!(changed(tier.read(0, 0..1, &mut [0; 128], &mut [0; 128])), "{len}");
        assert!(changed(tier.reserve(layer.len + 1)), "{len}");
        tier.file.write(1, 1, layer.len - 1, &[0; 128]).expect("unchecked");
        assert!(changed(tier.layer(0, layer.len).map(drop)), "{len}, written to its end");
    }
}
