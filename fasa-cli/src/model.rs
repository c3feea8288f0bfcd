//! A model with its tokenizer, from a folder or from this binary.

use crate::builtin;
use crate::settings::ModelArgs;
use crate::terminal;
use anyhow::{Context, Result};
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::ModelConfig;
use fasa_burn::model::Decoder;
use fasa_burn::text::Tokenizer;
use std::path::{Path, PathBuf};

/// Everything needed to read and write text.
#[derive(Debug)]
pub struct LanguageModel {
    /// The decoder.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What people call it.
    pub name: String,
    /// Its folder; `None` for the one in this binary.
    pub folder: Option<PathBuf>,
}

impl LanguageModel {
    /// Loads what the arguments name.
    ///
    /// # Errors
    /// If a file is missing, damaged or of an unsupported kind.
    pub fn load(args: &ModelArgs) -> Result<Self> {
        if let Some(threads) = args.threads {
            anyhow::ensure!(threads > 0, "`--threads` is 0; use at least 1");
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("cannot start the threads that `--threads` asks for")?;
        }
        let device = args.device.device();
        let bar = terminal::progress("loading", "layers");
        let mut progress = |done, total| terminal::advance(&bar, done, total);
        if args.model == Path::new(builtin::NAME) && !args.model.exists() {
            let config = ModelConfig::from_json(builtin::CONFIG, Path::new("nano/config.json"))?;
            let checkpoint = Checkpoint::from_bytes("nano/model.safetensors", builtin::WEIGHTS)?;
            let tokenizer = Tokenizer::from_bytes("nano/tokenizer.json", builtin::TOKENIZER)?;
            tokenizer.check_vocab(config.vocab_size)?;
            let decoder = Decoder::load(config, &checkpoint, &device, &mut progress)?;
            return Ok(Self { decoder, tokenizer, name: builtin::NAME.into(), folder: None });
        }
        let folder = args.model.clone();
        if !folder.is_dir() {
            anyhow::bail!(
                "`{}` is not a folder; give `--model` a folder with config.json, weights and tokenizer.json, or leave it \
                 out to use the built-in nano",
                folder.display()
            );
        }
        let config = ModelConfig::read(&folder)?;
        let tokenizer = Tokenizer::read(folder.join("tokenizer.json"))?;
        tokenizer.check_vocab(config.vocab_size)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let decoder = Decoder::load(config, &checkpoint, &device, &mut progress)?;
        let name = folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into());
        Ok(Self { decoder, tokenizer, name, folder: Some(folder) })
    }

    /// Token ids of a prompt, the start token first.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_prompt(text, self.decoder.config().bos_token_id)?)
    }

    /// Counts the tokens of a text; a text that cannot be encoded counts as endless.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode(text).map_or(usize::MAX / 4, |ids| ids.len())
    }
}
