//! Profiles as JSON: back without a bit lost, and whatever was tampered with is an error, never a panic, and never memory
//! beyond the size of the input.

#[path = "../fuzz/src/read_json.rs"]
mod read_json;
#[path = "../fuzz/src/sound.rs"]
mod sound;

use allocation_counter::measure;
use fasa_core::criterion::CriterionKind;
use fasa_core::profile::{Export, ExportedHead, ExportedKeys, Model, Profile, ProfileError, ProfileView, Provenance};
use fasa_core::{Pairing, Scope};
use serde::de::{Deserialize, Deserializer, IntoDeserializer, Visitor, value};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Two layers, two query heads on one KV head of dimension 4, and numbers that a careless reader would bend.
fn profile() -> Profile {
    let model = Model {
        architecture: "lla\"ma",
        layers: 2,
        query_heads: 2,
        kv_heads: 1,
        head_dim: 4,
        rotary_dim: 2,
        rope_theta: 1234567.8901234567,
        pairing: Pairing::HalfSplit,
        weights: 0x00ff_ffff_ffff_fff9,
        unrotated_layers: &[],
    };
    let provenance = Provenance {
        model,
        criterion: CriterionKind::Greedy,
        agreement_k: u32::MAX,
        scope: Scope::QueryHead,
        steps: u64::MAX,
        text: "a\n\té\u{1f600}\\",
    };
    // 7.038531e-26 is the number whose shortest decimal becomes its neighbour when read by way of an f64.
    let scores = [0.1f32, -0.0, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, -0.3, f32::from_bits(0x15ae_43fd), 3.0];
    let (scale, centre) = ([1.0, 0.1, 7.038531e-26, f32::MAX, 1.0, 2.0, 3.0, 1e-45], [-0.0, 0.1, 2.5e-8, f32::MIN]);
    let (scores, centre) = (scores.map(f64::from), [centre, centre].concat());
    Profile::from_rankings(&provenance, &[1, 0, 0, 1, 0, 1, 1, 0], &scores, &scale, &centre).expect("sound")
}

fn json_of(profile: &Profile) -> String {
    serde_json::to_string_pretty(&profile.view().expect("sound").export()).expect("JSON")
}

/// Why `json` is no profile. Reading it must not take more than its own size, times what the numbers of the shortest
/// spelling (`0,` for an `f32`) need in a list that grows by doubling.
fn problem(what: &str, json: &str) -> String {
    let mut result = Ok(Ok(profile()));
    let read = measure(|| result = serde_json::from_str::<Export>(json).map(|export| Profile::from_export(&export)));
    assert!(read.bytes_max <= 16 * json.len() as u64 + 1024, "{what}: {} of {}", read.bytes_max, json.len());
    match result {
        Ok(Ok(_)) => panic!("{what} was accepted"),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

/// `profile()` in JSON, changed.
fn with(change: impl FnOnce(&mut Value)) -> String {
    let mut json: Value = serde_json::from_str(&json_of(&profile())).expect("JSON");
    change(&mut json);
    json.to_string()
}

/// One value replaced by what may be no JSON value, such as 1e999.
fn replaced(pointer: &str, by: &str) -> String {
    let place = |json: &mut Value| *json.pointer_mut(pointer).expect("a field") = json!("here");
    with(place).replace("\"here\"", by)
}

#[test]
fn comes_back_to_the_bit() {
    let nano = repository().join("fixtures/nano");
    let fixture = |name: &str| Profile::from_bytes(std::fs::read(nano.join(name)).expect("readable")).expect("sound");
    for profile in [profile(), fixture("fasa-default.profile"), fixture("fasa-paper.profile")] {
        let json = json_of(&profile);
        let read: Export = serde_json::from_str(&json).expect("its own JSON");
        assert_eq!(Profile::from_export(&read).expect("sound").as_bytes(), profile.as_bytes());
        // From a stream, where nothing can be borrowed, and in a format that is not for people.
        let read: Export = serde_json::from_reader(json.as_bytes()).expect("its own JSON");
        assert_eq!(Profile::from_export(&read), Ok(profile.clone()));
        let mut bytes = vec![0; json.len()];
        let bytes = postcard::to_slice(&read, &mut bytes).expect("fits");
        let read: Export = postcard::from_bytes(bytes).expect("its own bytes");
        assert_eq!(Profile::from_export(&read), Ok(profile));
        read_json::read_json(json.as_bytes());
    }
}

#[test]
fn is_spelled_as_documented() {
    let default = std::fs::read(repository().join("fixtures/nano/fasa-default.profile")).expect("readable");
    let export = ProfileView::parse(&default).expect("sound").export();
    let json = serde_json::to_value(&export).expect("JSON");
    assert_eq!(
        json["model"],
        json!({
            "architecture": "llama", "layers": 6, "query_heads": 4, "kv_heads": 2, "head_dim": 64, "rotary_dim": 64,
            "rope_theta": 500_000.0, "pairing": "half-split", "weights": "157edcbed1cd61d7",
            "unrotated_layers": [],
        })
    );
    assert_eq!(json["version"], 1);
    assert_eq!(
        (&json["criterion"], &json["scope"], &json["steps"]),
        (&json!("margin"), &json!("kv-head"), &json!(268))
    );
    assert_eq!(json["heads"][3]["ranking"].as_array().map(Vec::len), Some(32));
    assert_eq!((&json["keys"][11]["layer"], &json["keys"][11]["kv_head"]), (&json!(5), &json!(1)));
    assert_eq!(json["keys"][11]["centre"].as_array().map(Vec::len), Some(64));
    assert_eq!(export.model.as_model(), *ProfileView::parse(&default).expect("sound").model());
    // Whole numbers where fractions are meant are how some programs write 3.0.
    let whole = json_of(&profile()).replace("3.0", "3");
    let read: Export = serde_json::from_str(&whole).expect("JSON");
    assert_eq!(Profile::from_export(&read), Ok(profile()));
}

#[test]
fn truncated_anywhere() {
    let good = json_of(&profile());
    for end in (0..good.len()).filter(|end| good.is_char_boundary(*end)) {
        problem(&format!("JSON cut at {end}"), &good[..end]);
    }
    problem("JSON with something appended", &format!("{good}{{}}"));
}

/// Any byte may become any other: an error, or another profile, which must be a sound one.
#[test]
fn every_byte_replaced() {
    let good = json_of(&profile());
    for at in 0..good.len() {
        for byte in [0, b' ', b'"', b'-', b'.', b'0', b'9', b'e', b'[', b']', b'{', b'}', b',', b'\\', 0xff] {
            let mut bad = good.clone().into_bytes();
            bad[at] = byte;
            read_json::read_json(&bad);
        }
    }
}

#[test]
fn wrong_types_and_impossible_numbers() {
    let numbers = [
        "/version",
        "/model/layers",
        "/model/query_heads",
        "/model/kv_heads",
        "/model/head_dim",
        "/model/rotary_dim",
        "/model/rope_theta",
        "/agreement_k",
        "/steps",
        "/heads/0/layer",
        "/heads/0/head",
        "/heads/0/ranking/0",
        "/heads/0/scores/0",
        "/keys/0/layer",
        "/keys/0/kv_head",
        "/keys/0/scale/0",
        "/keys/0/centre/0",
    ];
    let texts = ["/model/architecture", "/model/pairing", "/model/weights", "/criterion", "/scope", "/text"];
    let lists = ["/heads", "/heads/0/ranking", "/heads/0/scores", "/keys", "/keys/0/scale", "/keys/0/centre"];
    let structs = ["", "/model", "/heads/0", "/keys/0"];
    for pointer in numbers {
        for bad in ["1e999", "-1e999", "NaN", "Infinity", "null", "true", "\"1\"", "[1]", "{}", "1e", "0x10", "01", ""]
        {
            problem(&format!("{pointer} = {bad}"), &replaced(pointer, bad));
        }
        if !["rope_theta", "scores/0", "centre/0", "scale/0"].iter().any(|float| pointer.ends_with(float)) {
            for bad in ["-1", "0.5", "18446744073709551616", "340282366920938463463374607431768211456"] {
                problem(&format!("{pointer} = {bad}"), &replaced(pointer, bad));
            }
        }
    }
    for pointer in texts {
        for bad in ["1", "null", "[]", "{}", "\"\\ud800\"", "\"\n\"", "margin"] {
            problem(&format!("{pointer} = {bad}"), &replaced(pointer, bad));
        }
    }
    for pointer in lists {
        for bad in ["null", "0", "{}", "\"\"", "[null]", "[]", "[[[[]]]]", "[,]"] {
            problem(&format!("{pointer} = {bad}"), &replaced(pointer, bad));
        }
    }
    for pointer in structs {
        for bad in ["null", "0", "{}", "\"\"", "[]", "{\"layer\":0}"] {
            problem(&format!("{pointer} = {bad}"), &replaced(pointer, bad));
        }
    }
}

#[test]
fn fields_that_are_missing_unknown_or_twice() {
    for (pointer, fields) in [("", 9), ("/model", 10), ("/heads/1", 4), ("/keys/1", 4)] {
        let good: Value = serde_json::from_str(&json_of(&profile())).expect("JSON");
        let names: Vec<String> = good.pointer(pointer).and_then(Value::as_object).expect("").keys().cloned().collect();
        assert_eq!(names.len(), fields, "{pointer}");
        let change = |json: &mut Value, f: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            f(json.pointer_mut(pointer).and_then(Value::as_object_mut).expect("an object"));
        };
        for name in names {
            let missing = with(|json| change(json, &|object| drop(object.remove(&name))));
            assert!(problem("missing", &missing).contains(&format!("missing field `{name}`")), "{name}");
            let twice = with(|json| change(json, &|object| drop(object.insert("here".into(), object[&name].clone()))));
            let twice = twice.replace("\"here\"", &format!("\"{name}\""));
            assert!(problem("twice", &twice).contains(&format!("duplicate field `{name}`")), "{name}");
        }
        let unknown = with(|json| change(json, &|object| drop(object.insert("colour".into(), json!(1)))));
        assert!(problem("unknown", &unknown).contains("unknown field `colour`"));
    }
}

/// What the format accepts and a profile does not, by the field that the error names.
#[test]
fn values_that_make_no_sense() {
    for (pointer, bad, field) in [
        ("/model/layers", "0", "model"),
        ("/model/layers", "1", "heads"),
        ("/model/layers", "3", "heads"),
        ("/model/layers", "4294967295", "heads"),
        ("/model/query_heads", "0", "model"),
        ("/model/query_heads", "4294967295", "heads"),
        ("/model/kv_heads", "0", "model"),
        ("/model/kv_heads", "2", "keys"),
        ("/model/kv_heads", "3", "model.query_heads"),
        ("/model/head_dim", "0", "model.head_dim"),
        ("/model/head_dim", "3", "model.head_dim"),
        ("/model/head_dim", "6", "ranking"),
        ("/model/head_dim", "1024", "ranking"),
        ("/model/head_dim", "1026", "model.head_dim"),
        ("/model/head_dim", "4294967294", "model.head_dim"),
        ("/model/rotary_dim", "1", "model.rotary_dim"),
        ("/model/rotary_dim", "6", "model.rotary_dim"),
        ("/model/rope_theta", "0", "model.rope_theta"),
        ("/model/rope_theta", "-0.0", "model.rope_theta"),
        ("/model/rope_theta", "-10000.0", "model.rope_theta"),
        ("/scope", "\"kv-head\"", "heads"),
        ("/heads/0/ranking", "[0,0]", "ranking"),
        ("/heads/0/ranking", "[0,2]", "ranking"),
        ("/heads/0/ranking", "[65535,0]", "ranking"),
        ("/heads/0/ranking", "[0]", "ranking"),
        ("/heads/0/ranking", "[0,1,0]", "ranking"),
        ("/heads/0/scores", "[1]", "scores"),
        ("/heads/0/scores", "[1,1,1]", "scores"),
        ("/heads/0/layer", "1", "heads"),
        ("/heads/0/head", "18446744073709551615", "heads"),
        ("/keys/0/scale", "[1,1,1]", "key_scale"),
        ("/keys/0/scale", "[1,1,1,0]", "key_scale"),
        ("/keys/0/scale", "[1,1,1,-0.0]", "key_scale"),
        ("/keys/0/scale", "[1,1,1,-1]", "key_scale"),
        ("/keys/0/scale", "[1,1,1,1e-99]", "key_scale"),
        ("/keys/0/centre", "[]", "key_centre"),
        ("/keys/0/kv_head", "1", "keys"),
        ("/keys/1/layer", "0", "keys"),
    ] {
        let what = format!("{pointer} = {bad}");
        let message = problem(&what, &replaced(pointer, bad));
        assert!(message.contains(&format!("field `{field}` makes no sense")), "{what}: {message}");
    }
    // Beyond f32: readers of JSON refuse it themselves or make it infinite.
    for pointer in ["/heads/0/scores/1", "/keys/0/scale/1", "/keys/0/centre/1"] {
        for bad in ["1e39", "-1e39", "1e300"] {
            let message = problem(bad, &replaced(pointer, bad));
            assert!(message.contains("out of range") || message.contains("makes no sense"), "{message}");
        }
    }
    for version in ["0", "3", "65535"] {
        assert!(problem("a version", &replaced("/version", version)).contains(&format!("format version {version}")));
    }
    for weights in [
        "",
        "0",
        "157edcbed1cd61d",
        "157edcbed1cd61d70",
        "157EDCBED1CD61D7",
        "+57edcbed1cd61d7",
        "0x57edcbed1cd61d",
        "157edcbed1cd61dg",
        "éééééééé",
    ] {
        assert!(problem(weights, &replaced("/model/weights", &format!("\"{weights}\""))).contains("16 lower-case"));
    }
    for (pointer, bad) in [("/model/pairing", "HalfSplit"), ("/criterion", "taste"), ("/scope", "KV head")] {
        assert!(problem(bad, &replaced(pointer, &json!(bad).to_string())).contains("unknown variant"), "{bad}");
    }
}

#[test]
fn heads_missing_moved_or_twice() {
    for (list, name) in [("/heads", "heads"), ("/keys", "keys")] {
        let change = |f: &dyn Fn(&mut Vec<Value>)| {
            with(|json| f(json.pointer_mut(list).and_then(Value::as_array_mut).expect("a list")))
        };
        for (what, json) in [
            ("the first is missing", change(&|heads| drop(heads.remove(0)))),
            ("the last is missing", change(&|heads| drop(heads.pop()))),
            ("all are missing", change(&|heads| heads.clear())),
            ("the order is another", change(&|heads| heads.swap(0, 1))),
            ("one is there twice", change(&|heads| heads.insert(1, heads[0].clone()))),
            ("one is in another's place", change(&|heads| heads[1] = heads[0].clone())),
            ("the last is there twice", change(&|heads| heads.push(heads[heads.len() - 1].clone()))),
        ] {
            assert!(problem(what, &json).contains(&format!("field `{name}` makes no sense")), "{list}: {what}");
        }
    }
    // The table as a whole would have its size.
    let mut export = profile().view().expect("sound").export();
    let moved = export.heads[0].scores.pop().expect("two");
    export.heads[1].scores.push(moved);
    assert!(matches!(Profile::from_export(&export), Err(ProfileError::Field { field: "scores", .. })));
    export = profile().view().expect("sound").export();
    for (bad, field) in [(f32::NAN, "key_centre"), (f32::INFINITY, "key_scale"), (f32::NEG_INFINITY, "scores")] {
        match field {
            "key_centre" => export.keys[0].centre[0] = bad,
            "key_scale" => export.keys[0].scale[0] = bad,
            _ => export.heads[0].scores[0] = bad,
        }
        let named = |error| matches!(error, ProfileError::Field { field: named, .. } if named == field);
        assert!(Profile::from_export(&export).is_err_and(named), "{bad}");
    }
}

#[test]
fn deep_nesting_and_long_lists() {
    for open in ["[", "{\"model\":", "{\"heads\":[", "{\"heads\":[{\"ranking\":[", "{\"x\":"] {
        problem(open, &open.repeat(100_000));
        problem(open, &replaced("/text", &open.repeat(100_000)));
        problem(open, &replaced("/heads/0/scores/0", &open.repeat(100_000)));
    }
    // As small as numbers get, where the list takes the most memory beside its text.
    let zeros = format!("[{}0]", "0,".repeat(1 << 20));
    for pointer in ["/heads/0/ranking", "/heads/0/scores", "/keys/0/scale"] {
        problem("zeros", &replaced(pointer, &zeros));
    }
    let heads = "{\"layer\":0,\"head\":0,\"ranking\":[],\"scores\":[]},".repeat(1 << 14);
    problem("heads", &replaced("/heads", &format!("[{}]", heads.trim_end_matches(','))));
}

/// Input of a format that says how long a list is before it comes, and lies: two zeros, announced as 2^40.
enum Announced {
    Number,
    List(usize),
}

impl Iterator for Announced {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let Self::List(left) = self else { return None };
        *left = left.checked_sub(1)?;
        Some(0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (1 << 40, Some(1 << 40))
    }
}

impl<'de> Deserializer<'de> for Announced {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, value::Error> {
        match self {
            Self::Number => visitor.visit_u8(0),
            Self::List(_) => visitor.visit_seq(value::SeqDeserializer::new(self)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, value::Error> for Announced {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[test]
fn announced_lengths_reserve_nothing() {
    let two = || Announced::List(2);
    let head = [("layer", Announced::Number), ("head", Announced::Number), ("ranking", two()), ("scores", two())];
    let keys = [("layer", Announced::Number), ("kv_head", Announced::Number), ("scale", two()), ("centre", two())];
    let (mut lists, mut normalisers) = (None, None);
    let read = measure(|| {
        lists = ExportedHead::deserialize(value::MapDeserializer::new(head.into_iter())).ok();
        normalisers = ExportedKeys::deserialize(value::MapDeserializer::new(keys.into_iter())).ok();
    });
    assert_eq!(lists.map(|head| (head.ranking, head.scores)), Some((vec![0, 0], vec![0.0, 0.0])));
    assert_eq!(normalisers.map(|keys| (keys.scale, keys.centre)), Some((vec![0.0, 0.0], vec![0.0, 0.0])));
    assert!(read.bytes_max < 256, "{}", read.bytes_max);
    for list in ["heads", "keys"] {
        let export = value::MapDeserializer::new([(list, two())].into_iter());
        let read = measure(|| assert!(Export::deserialize(export).is_err()));
        assert!(read.bytes_max < 256, "{}", read.bytes_max);
    }
}

/// What the fuzzer starts from, and whatever it once found.
#[test]
fn corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/read_json");
    let mut accepted = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the repository") {
        let json = std::fs::read(entry.expect("readable").path()).expect("readable");
        read_json::read_json(&json);
        let export = serde_json::from_slice::<Export>(&json);
        accepted += usize::from(export.is_ok_and(|export| Profile::from_export(&export).is_ok()));
    }
    assert!(accepted > 0, "{} holds no profile", folder.display());
}
