//! What is done to bytes that claim to be files of a model: by the fuzzer, and by the test `hostile_files` on any compiler.
//! Nothing may panic, and nothing may take more memory than the bytes account for.

use fasa_burn::chat::{ChatTemplate, Message, Role};
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::{GenerationConfig, ModelConfig};
use fasa_burn::gguf::Gguf;
use fasa_burn::text::TokenizerSettings;
use std::collections::BTreeMap;
use std::path::Path;

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
