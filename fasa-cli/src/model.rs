//! A model with its tokenizer, from a folder or from this binary.

use crate::builtin;
use crate::settings::{DtypeName, ModelArgs};
use crate::terminal;
use crate::threads;
use anyhow::Result;
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::ModelConfig;
use fasa_burn::model::Decoder;
use fasa_burn::text::Tokenizer;
use fasa_burn::{Dtype, Error};
use std::path::{Path, PathBuf};

/// Loads the weights, in single precision where they turn out not to fit into the half that nobody asked for by name.
fn decoder(config: ModelConfig, checkpoint: &Checkpoint, args: &ModelArgs) -> Result<Decoder> {
    let device = args.device.open()?;
    let load = |dtype| {
        let bar = terminal::progress("loading", "layers");
        let mut progress = |done, total| terminal::advance(&bar, done, total);
        let decoder = Decoder::load(config.clone(), checkpoint, &device, dtype, &mut progress);
        bar.finish_and_clear();
        decoder
    };
    match load(args.dtype.dtype(checkpoint.is_half(), &device)) {
        Err(Error::Overflow { tensor, value, .. }) if args.dtype == DtypeName::Auto => {
            terminal::note(format_args!("`{tensor}` holds {value:e}, more than f16 can: weights and cache are f32"));
            Ok(load(Dtype::F32)?)
        }
        decoder => Ok(decoder?),
    }
}

/// The numbers of a model, without its weights.
///
/// # Errors
/// If there is no `config.json`, or one that is damaged or of an unsupported kind.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    match folder == Path::new(builtin::NAME) && !folder.exists() {
        true => Ok(ModelConfig::from_json(builtin::CONFIG, Path::new("nano/config.json"))?),
        false => Ok(ModelConfig::read(folder)?),
    }
}

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
        threads::start(args.threads)?;
        if args.model == Path::new(builtin::NAME) {
            if args.model.exists() {
                terminal::note("using the built-in nano; for the folder of that name here, write `./nano`");
            }
            let config = ModelConfig::from_json(builtin::CONFIG, Path::new("nano/config.json"))?;
            let checkpoint = Checkpoint::from_bytes("nano/model.safetensors", builtin::WEIGHTS)?;
            let tokenizer = Tokenizer::from_bytes("nano/tokenizer.json", builtin::TOKENIZER)?;
            tokenizer.check_vocab(config.vocab_size)?;
            let decoder = decoder(config, &checkpoint, args)?;
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
        let decoder = decoder(config, &checkpoint, args)?;
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
