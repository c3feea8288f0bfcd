//! A model with its tokenizer, from a folder or from this binary.

use crate::builtin;
use crate::hub;
use crate::settings::{DtypeName, ModelArgs};
use crate::terminal;
use crate::threads;
use anyhow::Result;
use fasa_burn::cache::Placement;
use fasa_burn::checkpoint::Checkpoint;
use fasa_burn::config::ModelConfig;
use fasa_burn::gguf::{self, Gguf};
use fasa_burn::model::Decoder;
use fasa_burn::text::{Tokenizer, TokenizerSettings};
use fasa_burn::{Dtype, Error};
use std::path::{Path, PathBuf};

/// Loads the weights, with a wider range where they turn out not to fit into the half that nobody asked for by name.
fn decoder(config: ModelConfig, checkpoint: &Checkpoint, args: &ModelArgs) -> Result<Decoder> {
    let (device, placement) = (args.open_device()?, placement(args)?);
    let load = |dtype| {
        let bar = terminal::progress("loading", "layers");
        let mut progress = |done, total| terminal::advance(&bar, done, total);
        let decoder = Decoder::load(config.clone(), checkpoint, &device, dtype, &mut progress);
        bar.finish_and_clear();
        let mut decoder = decoder?;
        decoder.set_placement(placement.clone())?;
        Ok(decoder)
    };
    match load(args.dtype.dtype(checkpoint.is_half(), &device)) {
        Err(Error::Overflow { tensor, value, .. }) if args.dtype == DtypeName::Auto => {
            let wide = if Dtype::Bf16.runs_on(&device) { Dtype::Bf16 } else { Dtype::F32 };
            terminal::note(format_args!("`{tensor}` holds {value:e}, more than f16 can: weights and cache are {wide}"));
            Ok(load(wide)?)
        }
        decoder => Ok(decoder?),
    }
}

/// Where caches go, with a note if that saves no memory.
///
/// # Errors
/// As [`ModelArgs::placement`].
pub fn placement(args: &ModelArgs) -> Result<Placement> {
    let placement = args.placement()?;
    if let Placement::Tiered(folder) = &placement
        && placement.is_in_memory()
    {
        terminal::note(format_args!(
            "`{}` is a file system in memory: a tiered cache there saves none; name a folder on a disk with `--cache-dir`",
            folder.display()
        ));
    }
    Ok(placement)
}

/// The numbers of a model, without its weights.
///
/// # Errors
/// If there is no `config.json`, or one that is damaged or of an unsupported kind.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    if path == Path::new(builtin::NAME) && !path.exists() {
        return Ok(ModelConfig::from_json(builtin::CONFIG, Path::new("nano/config.json"))?);
    }
    let path = hub::resolve(path)?;
    match gguf::is_gguf(&path) {
        true => Ok(Gguf::open(&path)?.config()?),
        false => Ok(ModelConfig::read(&path)?),
    }
}

/// Everything needed to read and write text.
#[derive(Debug)]
pub struct LanguageModel {
    /// The decoder.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What the model's files say beside the tokenizer, if they do.
    pub tokenizer_settings: Option<TokenizerSettings>,
    /// What people call it.
    pub name: String,
    /// Its folder, or the one that its file lies in; `None` for the one in this binary.
    pub folder: Option<PathBuf>,
    /// Its file, where all of it is in one.
    pub file: Option<PathBuf>,
    /// The token that begins a prompt.
    bos: Option<u32>,
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
            return Self::assemble(args, config, tokenizer, None, &checkpoint);
        }
        let path = hub::resolve(&args.model)?;
        if path != args.model {
            let mut model = Self::load(&ModelArgs { model: path, threads: None, ..args.clone() })?;
            model.name = args.model.display().to_string();
            return Ok(model);
        }
        if args.model.is_file() && gguf::is_gguf(&args.model) {
            let file = Gguf::open(&args.model)?;
            let (config, tokenizer) = (file.config()?, file.tokenizer()?);
            let settings = TokenizerSettings::from_json(&file.tokenizer_settings()?, &args.model)?;
            return Self::assemble(args, config, tokenizer, Some(settings), &Checkpoint::from_gguf(file)?);
        }
        let folder = &args.model;
        if !folder.is_dir() {
            anyhow::bail!(
                "`{}` is not a folder or a .gguf file; give `--model` a folder with config.json, weights and \
                 tokenizer.json, or leave it out to use the built-in nano",
                folder.display()
            );
        }
        let config = ModelConfig::read(folder)?;
        let tokenizer = Tokenizer::read(folder.join("tokenizer.json"))?;
        let settings = TokenizerSettings::read(folder)?;
        Self::assemble(args, config, tokenizer, settings, &Checkpoint::open(folder)?)
    }

    fn assemble(
        args: &ModelArgs,
        config: ModelConfig,
        tokenizer: Tokenizer,
        tokenizer_settings: Option<TokenizerSettings>,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        tokenizer.check_vocab(config.vocab_size)?;
        if let Some(settings) = &tokenizer_settings {
            settings.check(&tokenizer)?;
        }
        let bos = match &tokenizer_settings {
            Some(settings) => settings.bos(&tokenizer, config.bos_token_id)?,
            None => config.bos_token_id,
        };
        let decoder = decoder(config, checkpoint, args)?;
        let path = &args.model;
        let is_file = path.is_file();
        let is_builtin = path == Path::new(builtin::NAME);
        let named = if is_file { path.file_stem() } else { path.file_name() };
        let name = named.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        let folder = match is_file {
            true => path.parent().map(Path::to_owned),
            false => Some(path.clone()),
        };
        Ok(Self {
            decoder,
            tokenizer,
            tokenizer_settings,
            name,
            folder: folder.filter(|_| !is_builtin),
            file: (is_file && !is_builtin).then(|| path.clone()),
            bos,
        })
    }

    /// Where a file that belongs to the model lies: in its folder, or beside its file, named after it. `None` for the
    /// model in this binary.
    pub fn beside(&self, name: &str) -> Option<PathBuf> {
        match (&self.file, &self.folder) {
            (Some(file), _) => Some(file.with_extension(name)),
            (None, folder) => folder.as_ref().map(|folder| folder.join(name)),
        }
    }

    /// Token ids of a prompt, the start token first if the model wants one.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_prompt(text, self.bos)?)
    }

    /// Counts the tokens of a text; a text that cannot be encoded counts as endless.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode(text).map_or(usize::MAX / 4, |ids| ids.len())
    }
}
