//! What is done to bytes that claim to be files of a model: by the fuzzer, and by the test `hostile_files` on any compiler.
//! Nothing may panic, and nothing may take more memory than the bytes account for.

use fasa_burn::chat::{ChatTemplate, Message, Role};
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::{GenerationConfig, ModelConfig};
use fasa_burn::gguf::Gguf;
use fasa_burn::method::Method;
use fasa_burn::model::Decoder;
use fasa_burn::text::TokenizerSettings;
use fasa_burn::{Device, Dtype, session};
use fasa_core::profile::ProfileView;
use fasa_core::{Budget, FasaConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// A safetensors file.
pub fn read_weights(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", bytes.to_vec()) else { return };
    read_all(&checkpoint, bytes.len());
}

/// Whatever is accepted gives as many numbers as its shape says, and no more than the file has room for.
fn read_all(checkpoint: &Checkpoint, len: usize) {
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("listed").to_vec();
        let elements: usize = shape.iter().product();
        if let Ok(numbers) = checkpoint.tensor_f32(name, &shape) {
            assert!(numbers.len() == elements && elements <= 2 * len, "{name}: {elements} numbers of {len} bytes");
        }
        if let Ok(numbers) = checkpoint.tensor_f16(name, &shape) {
            assert_eq!(numbers.len(), elements, "{name}");
        }
    }
}

/// Any of the JSON files.
pub fn read_json(json: &[u8]) {
    let path = Path::new("fuzz.json");
    let _ = ModelConfig::from_json(json, path);
    if let Ok(config) = GenerationConfig::from_json(json, path) {
        assert!(config.sampling().validate().is_ok(), "what is accepted can be sampled with");
    }
    if let Ok(settings) = TokenizerSettings::from_json(json, path) {
        let _ = settings.special_tokens();
        if let Ok(Some(template)) = settings.chat_template() {
            render(template, Some(&settings));
        }
    }
}

/// A chat template.
pub fn read_template(text: &[u8]) {
    render(&String::from_utf8_lossy(text), None);
}

fn render(template: &str, settings: Option<&TokenizerSettings>) {
    let Ok(template) = ChatTemplate::new(template, Path::new("fuzz.jinja"), settings) else { return };
    let messages = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "naïve <b> 你好")];
    let _ = template.render(&messages, &BTreeMap::new());
}

/// A GGUF file. It is mapped, so it has to be a file.
pub fn read_gguf(bytes: &[u8]) {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    let Ok(read) = Gguf::open(file.path()) else { return };
    let _ = (read.config(), read.tokenizer(), read.tokenizer_settings());
    if let Ok(checkpoint) = Checkpoint::from_gguf(read) {
        read_all(&checkpoint, bytes.len());
    }
}

/// A saved session, for the model of the fixture: as it is, and with a checksum that fits the header, so that what lies
/// behind that is reached.
pub fn read_session(bytes: &[u8]) {
    static MODEL: OnceLock<(Decoder, Method)> = OnceLock::new();
    let (decoder, fasa) = MODEL.get_or_init(model);
    let file = tempfile::NamedTempFile::new().expect("a file");
    for bytes in [bytes.to_vec(), with_its_checksum(bytes)] {
        std::fs::write(file.path(), &bytes).expect("written");
        for method in [&Method::Dense, fasa] {
            if let Ok(session) = session::load(file.path(), decoder, method, 1) {
                let (tokens, cache) = (session.sequence.tokens(), session.sequence.cache());
                assert!(tokens.len() == cache.len() && bytes.len() > 4 * tokens.len());
            }
        }
    }
}

/// With the checksum of the header that it claims to have.
fn with_its_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let header = number(12).and_then(|length| bytes.get(20..20usize.checked_add(length as usize)?));
    if let Some(checksum) = header.map(crc32fast::hash) {
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

fn model() -> (Decoder, Method) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = here.ancestors().map(|folder| folder.join("fixtures/nano")).find(|folder| folder.exists());
    let folder = folder.expect("the fixture");
    let config = ModelConfig::read(&folder).expect("a config");
    let weights = Checkpoint::open(&folder).expect("weights");
    let decoder = Decoder::load(config, &weights, &Device::flex(), Dtype::F16, &mut |_, _| {}).expect("a model");
    let profile = std::fs::read(folder.join("fasa-default.profile")).expect("a profile");
    let profile = ProfileView::parse(&profile).expect("a profile");
    (decoder, Method::fasa(&profile, FasaConfig::DEFAULT, Budget::Tokens(16)).expect("it fits"))
}
