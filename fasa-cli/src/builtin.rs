//! The model that comes with the binary: nano, 5.8 million parameters, trained for this project.

use fasa_core::FasaConfig;

/// Its name on the command line.
pub const NAME: &str = "nano";
/// `config.json`.
pub const CONFIG: &[u8] = include_bytes!("../../fixtures/nano/config.json");
/// `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("../../fixtures/nano/tokenizer.json");
/// `model.safetensors`.
pub const WEIGHTS: &[u8] = include_bytes!("../../fixtures/nano/model.safetensors");

/// The profile for a preset, made by `fasa calibrate`; `None` for settings that neither preset's profile serves.
pub fn profile(config: &FasaConfig) -> Option<&'static [u8]> {
    let serves = |preset: &FasaConfig| preset.criterion == config.criterion && preset.chunk_scope == config.chunk_scope;
    if serves(&FasaConfig::DEFAULT) {
        Some(include_bytes!("../../fixtures/nano/fasa-default.profile"))
    } else if serves(&FasaConfig::PAPER) {
        Some(include_bytes!("../../fixtures/nano/fasa-paper.profile"))
    } else {
        None
    }
}
