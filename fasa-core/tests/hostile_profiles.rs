//! Profiles that somebody tampered with: an error, never a panic, and never memory beyond their size.
#![cfg(feature = "alloc")]

#[path = "../fuzz/src/read_profile.rs"]
mod read_profile;
#[path = "../fuzz/src/sound.rs"]
mod sound;

use allocation_counter::measure;
use fasa_core::criterion::CriterionKind;
use fasa_core::profile::{Model, Profile, ProfileError, ProfileView, Provenance};
use fasa_core::{Pairing, Scope};
use read_profile::under_header;
use sound::check;
use std::path::Path;

/// A number as postcard writes it: seven bits a byte, lowest first.
fn varint(mut number: u128) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// One field of a body, in bytes.
#[derive(Clone)]
struct Field {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the bytes start with a length.
    sized: bool,
}

/// A sound body, field by field as `docs/profile.md` lists them: one layer, two query heads on one KV head of dimension 4.
fn body() -> Vec<Field> {
    let number = |name, n: u128| Field { name, bytes: varint(n), sized: false };
    let sized = |name, content: &[u8]| Field {
        name,
        bytes: [varint(content.len() as u128), content.to_vec()].concat(),
        sized: true,
    };
    let floats = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    vec![
        sized("architecture", b"llama"),
        number("layers", 1),
        number("query_heads", 2),
        number("kv_heads", 1),
        number("head_dim", 4),
        number("rotary_dim", 4),
        Field { name: "rope_theta", bytes: 10_000.0f64.to_le_bytes().to_vec(), sized: false },
        number("pairing", 0),
        number("weights", u128::from(u64::MAX)),
        number("criterion", 1),
        number("agreement_k", 0),
        number("scope", 0),
        number("steps", 7),
        sized("text", "a té xt".as_bytes()),
        sized("ranking", &[1, 0, 0, 0]),
        sized("scores", &floats(&[0.5, -0.25])),
        sized("key_scale", &floats(&[1.0, 2.0, 0.5, 1e-30])),
        sized("key_centre", &floats(&[0.0, -3.0, 0.25, 1e30])),
    ]
}

fn file(fields: &[Field]) -> Vec<u8> {
    under_header(&fields.iter().flat_map(|f| f.bytes.clone()).collect::<Vec<u8>>())
}

/// `body()` with one field replaced.
fn with(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    let mut fields = body();
    fields.iter_mut().find(|f| f.name == name).expect("a field").bytes = bytes;
    file(&fields)
}

/// Reading must not allocate at all, and owning a profile no more than its bytes.
fn refuse(what: &str, bytes: &[u8]) {
    let mut result = Ok(());
    let read = measure(|| result = ProfileView::parse(bytes).map(|_| ()));
    assert!(result.is_err(), "{what} was accepted");
    assert_eq!(read.bytes_total, 0, "{what} allocated while being read");
    let owned = bytes.to_vec();
    let own = measure(|| result = Profile::from_bytes(owned).map(|_| ()));
    assert!(result.is_err() && own.bytes_total == 0, "{what}");
}

const LIMITS: [u128; 14] = [
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0x1_0000_0000_0000_0000,
    u128::MAX,
];

#[test]
fn the_documented_layout_is_what_is_written_and_read() {
    let model = Model {
        architecture: "llama",
        layers: 1,
        query_heads: 2,
        kv_heads: 1,
        head_dim: 4,
        rotary_dim: 4,
        rope_theta: 10_000.0,
        pairing: Pairing::HalfSplit,
        weights: u64::MAX,
        unrotated_layers: &[],
    };
    let provenance = Provenance {
        model,
        criterion: CriterionKind::Margin,
        agreement_k: 0,
        scope: Scope::KvHead,
        steps: 7,
        text: "a té xt",
    };
    let (scale, centre) = ([1.0, 2.0, 0.5, 1e-30], [0.0, -3.0, 0.25, 1e30]);
    let profile = Profile::from_rankings(&provenance, &[1, 0], &[0.5, -0.25], &scale, &centre).expect("sound");
    assert_eq!(profile.as_bytes(), file(&body()));
    let mut result = Ok(());
    let read = measure(|| result = ProfileView::parse(profile.as_bytes()).map(|_| ()));
    assert_eq!((result, read.bytes_total), (Ok(()), 0));
    assert_eq!(check(profile.as_bytes()), Ok(()));
}

#[test]
fn rankings_that_make_no_sense_are_not_written() {
    let view_of = file(&body());
    let view = ProfileView::parse(&view_of).expect("sound");
    let provenance = Provenance {
        model: *view.model(),
        criterion: CriterionKind::Greedy,
        agreement_k: 64,
        scope: Scope::QueryHead,
        steps: 1,
        text: "",
    };
    let new = |ranking: &[u16], scores: &[f64], scale: &[f32], centre: &[f32]| {
        Profile::from_rankings(&provenance, ranking, scores, scale, centre)
    };
    assert!(new(&[0, 1, 1, 0], &[0.0; 4], &[1.0; 4], &[0.0; 4]).is_ok());
    assert!(new(&[0, 1, 1, 1], &[0.0; 4], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 2], &[0.0; 4], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1], &[0.0; 2], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 0], &[0.0; 3], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 0], &[f64::NAN; 4], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 0], &[1e300; 4], &[1.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 0], &[0.0; 4], &[0.0; 4], &[0.0; 4]).is_err());
    assert!(new(&[0, 1, 1, 0], &[0.0; 4], &[1.0; 3], &[0.0; 3]).is_err());
    assert!(new(&[0, 1, 1, 0], &[0.0; 4], &[1.0; 4], &[f32::INFINITY; 4]).is_err());
    // Sizes beyond what a machine can count.
    let model = Model { layers: u32::MAX, query_heads: u32::MAX, kv_heads: u32::MAX, ..*view.model() };
    assert!(Profile::from_rankings(&Provenance { model, ..provenance }, &[], &[], &[], &[]).is_err());
}

#[test]
fn truncated_anywhere() {
    let good = file(&body());
    for end in 0..good.len() {
        refuse(&format!("a file cut at {end}"), &good[..end]);
        // The same with a header that fits.
        if let Some(body) = good[..end].get(20..) {
            refuse(&format!("a body cut at {end}"), &under_header(body));
        }
    }
    refuse("a file with a byte appended", &[&good[..], &[0]].concat());
    refuse("a body with a byte appended", &under_header(&[&good[20..], &[0]].concat()));
}

#[test]
fn every_byte_replaced_by_every_other() {
    let good = file(&body());
    for at in 0..good.len() {
        for byte in (0..=255).filter(|b| *b != good[at]) {
            let mut bad = good.clone();
            bad[at] = byte;
            refuse(&format!("byte {at} as {byte}"), &bad);
            // With a checksum that fits, some are profiles of another model. They must be sound ones.
            let _ = check(&under_header(&bad[20..]));
        }
    }
}

#[test]
fn numbers_and_lengths_near_the_limits() {
    for field in body() {
        for limit in LIMITS {
            let name = field.name;
            if field.sized {
                // The length alone, and the length before the content.
                let length = varint(limit);
                refuse(&format!("{name} of length {limit}"), &with(name, length.clone()));
                let content = &field.bytes[1..];
                if limit != content.len() as u128 {
                    refuse(
                        &format!("{name} of length {limit}, with content"),
                        &with(name, [&length, content].concat()),
                    );
                }
            } else if name != "rope_theta" {
                let bytes = with(name, varint(limit));
                let accepted = check(&bytes).is_ok();
                // Nothing in the file depends on these. (No table has a row per query head here.)
                let any_value = match name {
                    "weights" | "steps" => limit <= u128::from(u64::MAX),
                    "agreement_k" | "query_heads" => limit <= u128::from(u32::MAX),
                    _ => false,
                };
                assert_eq!(accepted, any_value, "{name} = {limit}");
                if !accepted {
                    refuse(&format!("{name} = {limit}"), &bytes);
                }
            }
        }
    }
    // All factors of the tables' sizes at once, so that their products wrap around to something small.
    for (layers, heads, dim) in [(0x8000_0000u128, 2u128, 4u128), (0x4000_0000, 4, 4), (0xffff_ffff, 0xffff_ffff, 1024)]
    {
        let mut fields = body();
        for field in &mut fields {
            match field.name {
                "layers" => field.bytes = varint(layers),
                "query_heads" | "kv_heads" => field.bytes = varint(heads),
                "head_dim" | "rotary_dim" => field.bytes = varint(dim),
                "ranking" | "scores" | "key_scale" | "key_centre" => field.bytes = varint(0),
                _ => {}
            }
        }
        refuse(&format!("{layers} layers of {heads} heads"), &file(&fields));
    }
    for theta in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        refuse(&format!("theta {theta}"), &with("rope_theta", theta.to_le_bytes().to_vec()));
    }
}

#[test]
fn fields_that_contradict_one_another() {
    let floats = |numbers: [f32; 4]| [vec![16], numbers.iter().flat_map(|x| x.to_le_bytes()).collect()].concat();
    for (name, bytes) in [
        ("layers", varint(0)),
        ("layers", varint(2)),
        ("query_heads", varint(0)),
        ("kv_heads", varint(0)),
        ("kv_heads", varint(2)),
        ("kv_heads", varint(3)),
        ("head_dim", varint(0)),
        ("head_dim", varint(3)),
        ("head_dim", varint(6)),
        ("rotary_dim", varint(3)),
        ("rotary_dim", varint(6)),
        ("pairing", varint(3)),
        ("criterion", varint(3)),
        ("scope", varint(2)),
        ("scope", varint(1)),
        ("architecture", vec![2, 0xff, 0xfe]),
        ("text", vec![1, 0xc3]),
        ("ranking", vec![4, 1, 0, 1, 0]),
        ("ranking", vec![4, 2, 0, 0, 0]),
        ("ranking", vec![4, 0xff, 0xff, 0, 0]),
        ("ranking", vec![3, 1, 0, 0]),
        ("key_scale", floats([1.0, 0.0, 1.0, 1.0])),
        ("key_scale", floats([1.0, -1.0, 1.0, 1.0])),
        ("key_scale", floats([1.0, f32::NAN, 1.0, 1.0])),
        ("key_centre", floats([1.0, f32::INFINITY, 1.0, 1.0])),
        // A varint that goes on for ever, and one that is too long for its number.
        ("layers", vec![0x80; 30]),
        ("steps", vec![0xff; 11]),
    ] {
        refuse(&format!("{name} = {bytes:?}"), &with(name, bytes));
    }
}

#[test]
fn headers() {
    let good = file(&body());
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    let error = |bytes: &[u8]| ProfileView::parse(bytes).expect_err("hostile");
    assert_eq!(error(&with(0, b"f")), ProfileError::NotAProfile);
    assert_eq!(error(&with(8, &[3, 0])), ProfileError::Version { found: 3 });
    assert_eq!(error(&with(16, &[0; 4])), ProfileError::Checksum);
    for length in [0, 1, 0x7fff_ffff, u32::MAX] {
        let want = 20 + u64::from(length);
        assert_eq!(error(&with(12, &length.to_le_bytes())), ProfileError::Length { want, got: good.len() as u64 });
    }
    for empty in [&b""[..], b"FASAPROF", &[0; 20], &[0xff; 64]] {
        assert_eq!(error(empty), ProfileError::NotAProfile);
    }
}

/// What the fuzzer starts from, and whatever it once found.
#[test]
fn corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/read_profile");
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the repository") {
        read_profile::read_profile(&std::fs::read(entry.expect("readable").path()).expect("readable"));
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

/// Format version 2: a layer without rotary positions pairs its dimensions consecutively.
#[test]
fn layers_that_do_not_turn_have_their_own_chunks() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/nano/fasa-default.profile");
    let base = std::fs::read(path).expect("readable");
    let mut export = ProfileView::parse(&base).expect("sound").export();
    assert_eq!(export.version, 1);
    export.version = 2;
    export.model.unrotated_layers = vec![0, 0, 0, 1, 0, 0];
    let profile = Profile::from_export(&export).expect("sound");
    let view = profile.view().expect("sound");
    assert_eq!((view.version(), view.export()), (2, export.clone()));
    assert_eq!(view.model().layer_chunks(2).expect("valid").pair(1), (1, 33));
    assert_eq!(view.model().layer_chunks(3).expect("valid").pair(1), (2, 3));
    let plan = fasa_core::policy::OwnedPlan::new(&view, fasa_core::FasaConfig::DEFAULT).expect("fits");
    for (layer, apart) in [(2, 32), (3, 1)] {
        let head = plan.view().head(layer, 0).expect("there");
        let (firsts, seconds) = head.channels().split_at(head.chunks());
        assert!(firsts.iter().zip(seconds).all(|(a, b)| b - a == apart), "layer {layer}");
    }
    for (flags, version) in
        [(vec![0, 1], 2), (vec![0; 6], 2), (vec![0, 0, 2, 0, 0, 0], 2), (vec![1; 6], 1), (vec![], 2)]
    {
        export.model.unrotated_layers = flags.clone();
        export.version = version;
        let field =
            if flags.len() == 6 && version == 2 || flags.len() == 2 { "model.unrotated_layers" } else { "version" };
        match Profile::from_export(&export) {
            Err(ProfileError::Field { field: found, .. }) => assert_eq!(found, field, "{flags:?}"),
            other => panic!("{flags:?}: {other:?}"),
        }
    }
}
