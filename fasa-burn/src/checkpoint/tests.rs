use super::*;
use serde_json::json;
use std::sync::atomic::AtomicUsize;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano");

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("fasa-checkpoint-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn write_index(&self, weight_map: serde_json::Value) {
        self.write(INDEX_FILE, json!({ "weight_map": weight_map }).to_string());
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file with this header and these data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A file with one vector of two F32 values.
fn one_tensor(name: &str) -> Vec<u8> {
    let header = json!({ name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} });
    let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    file(&header.to_string(), &data)
}

#[track_caller]
fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn nano_reads_from_folder_file_and_memory() {
    let path = Path::new(NANO).join(SINGLE_FILE);
    let bytes = fs::read(&path).unwrap();
    let checkpoints = [
        Checkpoint::open(NANO).unwrap(),
        Checkpoint::open(&path).unwrap(),
        Checkpoint::from_bytes("embedded", bytes.clone()).unwrap(),
    ];
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = reference.names();
    names.sort_unstable();
    for checkpoint in &checkpoints {
        assert!(checkpoint.names().eq(names.iter().copied()));
        for (name, view) in reference.iter() {
            assert_eq!(checkpoint.shape(name), Some(view.shape()));
            let values = checkpoint.tensor_f32(name, view.shape()).unwrap();
            // The fixture is bfloat16: its bits are the upper half of the f32.
            let bits: Vec<u8> = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
            assert!(bits == view.data(), "{name}");
            assert!(values.iter().all(|x| x.to_bits() & 0xffff == 0), "{name}");
        }
        assert!(checkpoint.unread().is_empty());
    }
}

#[test]
fn every_float_type_converts_exactly() {
    let header = json!({
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [2], "data_offsets": [8, 12]},
        "c": {"dtype": "BF16", "shape": [2], "data_offsets": [12, 16]},
        "d": {"dtype": "I32", "shape": [1], "data_offsets": [16, 20]},
        "e": {"dtype": "F32", "shape": [0, 7], "data_offsets": [20, 20]},
        "f": {"dtype": "F32", "shape": [], "data_offsets": [20, 24]},
    });
    let mut data = Vec::new();
    data.extend(0.1f32.to_le_bytes());
    data.extend(f32::MIN_POSITIVE.to_le_bytes());
    data.extend(f16::from_f32(6.1e-5).to_le_bytes());
    data.extend(f16::MAX.to_le_bytes());
    data.extend(bf16::from_f32(-3.0).to_le_bytes());
    data.extend(bf16::MIN_POSITIVE.to_le_bytes());
    data.extend([7, 0, 0, 0]);
    data.extend(9.0f32.to_le_bytes());
    let checkpoint = Checkpoint::from_bytes("m", file(&header.to_string(), &data)).unwrap();
    let read = |name, shape: &[usize]| checkpoint.tensor_f32(name, shape).unwrap();
    assert_eq!(read("a", &[1, 2]), [0.1, f32::MIN_POSITIVE]);
    assert_eq!(read("b", &[2]), [f16::from_f32(6.1e-5).to_f32(), 65504.0]);
    assert_eq!(read("c", &[2]), [-3.0, f32::MIN_POSITIVE]);
    assert!(read("e", &[0, 7]).is_empty());
    assert_eq!(read("f", &[]), [9.0]);
    let text = message(checkpoint.tensor_f32("d", &[1]));
    assert!(text.contains("`m`: tensor `d` holds I32"), "{text}");
    assert_eq!(checkpoint.unread(), ["d"]);
}

#[test]
fn half_precision_rounds_and_refuses_what_is_too_large() {
    let folder = Folder::new();
    let values = [1.0f32, -65504.0, 1e-9, f32::INFINITY, 1.0 + 1.0 / 4096.0, 65519.0];
    let write = |dtype: &str, data: Vec<u8>| {
        let len = values.len();
        let header = json!({ "w": {"dtype": dtype, "shape": [1, len], "data_offsets": [0, data.len()]} });
        Checkpoint::open(folder.write(SINGLE_FILE, file(&header.to_string(), &data))).unwrap()
    };
    let wide = |scale: f32| values.iter().flat_map(|x| (x * scale).to_le_bytes()).collect::<Vec<u8>>();
    let checkpoint = write("F32", wide(1.0));
    assert!(!checkpoint.is_half());
    // The last is above the largest half, but rounds to it.
    let want = [1.0, -65504.0, 0.0, f32::INFINITY, 1.0, 65504.0];
    assert_eq!(checkpoint.tensor_f16("w", &[1, 6]).unwrap(), want.map(f16::from_f32));
    assert!(checkpoint.unread().is_empty());
    let error = write("F32", wide(2.0)).tensor_f16("w", &[1, 6]).unwrap_err();
    assert!(matches!(&error, Error::Overflow { tensor, value: -131008.0, .. } if tensor == "w"), "{error:?}");
    for part in [SINGLE_FILE, "`w`", "-1.31008e5", "--dtype f32"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let narrow = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let checkpoint = write("BF16", narrow);
    assert!(checkpoint.is_half());
    assert!(message(checkpoint.tensor_f16("w", &[1, 6])).contains("6.5536e4"));
    // The wider 16 bits hold all of them, and less of each.
    let want = values.map(bf16::from_f32);
    assert_eq!(checkpoint.tensor_bf16("w", &[1, 6]).unwrap(), want);
    assert_eq!(write("F32", wide(1.0)).tensor_bf16("w", &[1, 6]).unwrap(), want);
    let largest = [f32::MAX, 1.0, 1.0, 1.0, 1.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(message(write("F32", largest).tensor_bf16("w", &[1, 6])).contains("3.4028235e38"));
    assert!(write("F16", values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()).is_half());
}

#[test]
fn a_tensor_longer_than_one_piece_is_read_whole() {
    let values: Vec<f32> = (0..600_001).map(|i| i as f32).collect();
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let header = json!({"t": {"dtype": "F32", "shape": [600_001], "data_offsets": [0, data.len()]}});
    let folder = Folder::new();
    let path = folder.write("x.safetensors", file(&header.to_string(), &data));
    let checkpoint = Checkpoint::open(path).unwrap();
    assert!(checkpoint.tensor_f32("t", &[600_001]).unwrap() == values);
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named() {
    let checkpoint = Checkpoint::from_bytes("m", one_tensor("t")).unwrap();
    let text = message(checkpoint.tensor_f32("u", &[2]));
    assert!(text.contains("`m`: tensor `u` is missing"), "{text}");
    let text = message(checkpoint.tensor_f32("t", &[1, 2]));
    assert!(text.contains("shape [2], expected [1, 2]"), "{text}");
    assert_eq!(checkpoint.unread(), ["t"], "a refused tensor was not read");
}

#[test]
fn truncated_or_lengthened_files_are_refused() {
    let whole = one_tensor("t");
    let folder = Folder::new();
    for length in 0..whole.len() {
        let text = message(Checkpoint::from_bytes("cut", whole[..length].to_vec()));
        assert!(text.contains("`cut`") && text.contains("download"), "{text}");
        let path = folder.write("cut.safetensors", &whole[..length]);
        assert!(message(Checkpoint::open(path)).contains("cut.safetensors"));
    }
    let text = message(Checkpoint::from_bytes("cut", whole[..whole.len() - 1].to_vec()));
    assert!(text.contains("truncated"), "{text}");
    let mut longer = whole.clone();
    longer.push(0);
    let text = message(Checkpoint::from_bytes("long", longer));
    assert!(text.contains("appended"), "{text}");
}

#[test]
fn hostile_headers_are_refused_without_allocating_what_they_claim() {
    for claimed in [u64::MAX, u64::MAX - 7, i64::MAX as u64, 100_000_001, 90_000_000, 17] {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend([b' '; 16]);
        let text = message(Checkpoint::from_bytes("m", bytes));
        assert!(text.contains(&claimed.to_string()), "{text}");
    }
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let headers = [
        String::new(),
        "[]".into(),
        "{".into(),
        "\u{0}".into(),
        "[".repeat(10_000),
        r#"{"t":3}"#.into(),
        tensor("F33", "[2]", "[0,8]"),
        tensor("F32", "[3]", "[0,8]"),
        tensor("F32", "[-2]", "[0,8]"),
        tensor("F32", "[2]", "[8,0]"),
        tensor("F32", "[2]", "[4,12]"),
        tensor("F32", "[2]", "[0,18446744073709551616]"),
        tensor("F32", "[4294967296,4294967296]", "[0,8]"),
        tensor("F32", "[18446744073709551615]", "[0,18446744073709551612]"),
        tensor("U8", "[18446744073709551615]", "[0,18446744073709551615]"),
        tensor("F32", "[4611686018427387903]", "[0,18446744073709551612]"),
        // A hole, and an overlap.
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#
            .into(),
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}"#
            .into(),
    ];
    for header in headers {
        let text = message(Checkpoint::from_bytes("m", file(&header, &[0; 8])));
        assert!(text.starts_with("`m`: "), "{text}");
    }
    // Not UTF-8.
    let mut bytes = 4u64.to_le_bytes().to_vec();
    bytes.extend([b'"', 0xff, 0xfe, b'"']);
    assert!(Checkpoint::from_bytes("m", bytes).is_err());
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = Folder::new();
    let text = message(Checkpoint::open(&folder.0));
    assert!(text.contains(SINGLE_FILE) && text.contains(INDEX_FILE), "{text}");
    let gguf = folder.write("model.gguf", b"GGUF");
    let text = message(Checkpoint::open(gguf));
    assert!(text.contains("model.gguf") && text.contains("too short for GGUF"), "{text}");
    assert!(matches!(Checkpoint::open(folder.0.join("absent")), Err(Error::Io { .. })));
    fs::create_dir(folder.0.join(SINGLE_FILE)).unwrap();
    assert!(matches!(Checkpoint::open(&folder.0), Err(Error::Io { .. })));
}

#[test]
fn shards_are_joined_by_their_index() {
    let folder = Folder::new();
    folder.write("one.safetensors", one_tensor("a"));
    folder.write("two.safetensors", one_tensor("b"));
    folder.write_index(json!({"a": "one.safetensors", "b": "two.safetensors"}));
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    assert!(checkpoint.names().eq(["a", "b"]));
    assert!(checkpoint.contains("a") && !checkpoint.contains("c"));
    assert_eq!(checkpoint.tensor_f32("b", &[2]).unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.unread(), ["a"]);
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let cases = [
        (json!({"a": "one.safetensors", "b": "three.safetensors"}), "three.safetensors"),
        (json!({"a": "one.safetensors", "c": "one.safetensors"}), "tensor `c`"),
        (json!({"a": "one.safetensors", "b": "one.safetensors", "x": "two.safetensors"}), "tensor `b`"),
        (json!({"a": "one.safetensors", "x": "copy.safetensors"}), "tensor `a` is also in"),
        (json!({"a": "../one.safetensors"}), "../one.safetensors"),
        (json!({"a": "/etc/one.safetensors"}), "/etc/one.safetensors"),
        (json!({"a": "one.bin"}), "one.bin"),
        (json!({}), "no tensor"),
        (json!({"a": 3}), "damaged"),
        (json!([]), "damaged"),
        (json!("one.safetensors"), "damaged"),
    ];
    let folder = Folder::new();
    folder.write("one.safetensors", one_tensor("a"));
    folder.write("two.safetensors", one_tensor("b"));
    folder.write("copy.safetensors", one_tensor("a"));
    for (weight_map, named) in cases {
        folder.write_index(weight_map.clone());
        let text = message(Checkpoint::open(&folder.0));
        assert!(text.contains(named), "{weight_map}: {text}");
    }
    for json in ["", "{}", "[", r#"{"weight_map"#] {
        folder.write(INDEX_FILE, json);
        let text = message(Checkpoint::open(&folder.0));
        assert!(text.contains(INDEX_FILE), "{text}");
    }
}

#[test]
fn whole_files_are_bounded() {
    let folder = Folder::new();
    let path = folder.write("x.json", b"12345");
    assert_eq!(read_whole(&path, 5).unwrap(), b"12345");
    assert!(matches!(read_whole(&path, 4), Err(Error::Io { .. })));
    assert!(matches!(read_whole(&folder.0, 4), Err(Error::Io { .. })));
}
