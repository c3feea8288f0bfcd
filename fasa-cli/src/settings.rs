//! Command-line arguments that several commands share.

use crate::sizes::parse_bytes;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fasa_burn::cache::Placement;
use fasa_burn::{Device, DeviceName, Dtype};
use fasa_core::config::ChunkCount;
use fasa_core::criterion::CriterionKind;
use fasa_core::sketch::Precision;
use fasa_core::{Budget, FasaConfig, Scope};
use std::path::PathBuf;

/// Which model, and where it runs.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Folder with config.json, safetensors weights and tokenizer.json, a .gguf file, or (built with the feature `hub`) a
    /// name on the Hugging Face hub such as `Qwen/Qwen3-0.6B`; `nano` is the model inside this binary
    #[arg(long, value_name = "MODEL", default_value = crate::builtin::NAME)]
    pub model: PathBuf,

    /// Where it runs: cpu, cuda, wgpu, vulkan or metal; `cuda:1` is the second GPU. `fasa devices` lists them
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,

    /// Number format of weights and cache
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeName,

    /// Threads to use [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Where keys and values lie
    #[command(flatten)]
    pub cache: CacheArgs,

    /// The most of a GPU's memory that weights and cache may take, such as `40GiB` [default: all of it]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub device_memory: Option<u64>,
}

impl ModelArgs {
    /// Opens the device that the arguments name, and limits its memory.
    ///
    /// # Errors
    /// If it cannot be used, or is the processor and a limit was asked for.
    pub fn open_device(&self) -> Result<Device> {
        let device = self.device.open()?;
        match self.device_memory {
            Some(_) if self.device == DeviceName::Cpu => {
                bail!("`--device-memory` limits a GPU's memory; limit that of a process with `ulimit -d`")
            }
            limit => fasa_burn::device::limit_memory(limit),
        }
        Ok(device)
    }

    /// The placement that the arguments ask for.
    ///
    /// # Errors
    /// For a folder where nothing is written to one.
    pub fn placement(&self) -> Result<Placement> {
        let on_gpu = self.device != DeviceName::Cpu;
        if on_gpu && self.cache.cache_dir.is_some() {
            bail!(
                "`--cache-dir` is for the processor; with a GPU a tiered cache keeps keys and values in the host's memory: leave it out"
            );
        }
        Ok(match self.cache.placement()? {
            Placement::Tiered(_) if on_gpu => Placement::Host,
            Placement::Auto(_) if on_gpu => Placement::AutoHost,
            placement => placement,
        })
    }
}

/// Where keys and values lie.
#[derive(Debug, Clone, Default, Args)]
pub struct CacheArgs {
    /// Where keys and values lie: see docs/memory.md
    #[arg(long, value_enum, default_value_t)]
    pub cache: CacheName,

    /// Folder for the file of the tiered cache, on a disk with room for it [default: $FASA_CACHE_DIR, else $TMPDIR, else
    /// /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,
}

/// Places for keys and values on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheName {
    /// In memory while they fit there, else tiered
    #[default]
    Auto,
    /// In the device's memory
    Device,
    /// In a file, read as steps choose tokens: the same text from a fraction of the memory. With a GPU, in the host's memory
    Tiered,
}

impl CacheArgs {
    /// The placement that the arguments ask for.
    ///
    /// # Errors
    /// For a folder where nothing is written to one.
    pub fn placement(&self) -> Result<Placement> {
        let folder = || self.cache_dir.clone().unwrap_or_else(default_folder);
        Ok(match self.cache {
            CacheName::Auto => Placement::Auto(folder()),
            CacheName::Tiered => Placement::Tiered(folder()),
            CacheName::Device if self.cache_dir.is_some() => {
                bail!("`--cache-dir` is for a tiered cache, and `--cache device` is none; leave one of them out")
            }
            CacheName::Device => Placement::Device,
        })
    }
}

/// Not the system's folder for temporary files unless somebody chose it: on many systems that is in memory.
fn default_folder() -> PathBuf {
    let named = ["FASA_CACHE_DIR", "TMPDIR"].into_iter().find_map(std::env::var_os).filter(|folder| !folder.is_empty());
    let kept = || Some(PathBuf::from("/var/tmp")).filter(|folder| cfg!(unix) && folder.is_dir());
    named.map(PathBuf::from).or_else(kept).unwrap_or_else(std::env::temp_dir)
}

/// Number formats of weights and cache on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// f16 for weights in 16 bits where they fit and the device computes with it, else f32
    #[default]
    Auto,
    /// Half precision, 2 bytes
    F16,
    /// The upper half of single precision, 2 bytes; on GPUs only
    Bf16,
    /// Single precision, 4 bytes
    F32,
}

impl DtypeName {
    /// The format for a checkpoint, `is_half` if its weights are stored in 16 bits.
    pub fn dtype(self, is_half: bool, device: &Device) -> Dtype {
        match self {
            DtypeName::F16 => Dtype::F16,
            DtypeName::Bf16 => Dtype::Bf16,
            DtypeName::F32 => Dtype::F32,
            DtypeName::Auto if is_half && Dtype::F16.runs_on(device) => Dtype::F16,
            DtypeName::Auto => Dtype::F32,
        }
    }
}

/// Which method attends, and how much it may read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Attention")]
pub struct MethodArgs {
    /// How decode steps attend
    #[arg(long, value_enum, default_value_t)]
    pub method: MethodName,

    /// Tokens that each decode step reads: a count such as `256`, or a share of the context such as `3%`
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse_budget)]
    pub budget: Budget,

    /// FASA settings to start from
    #[arg(long, value_enum, default_value_t)]
    pub preset: Preset,

    /// Calibrated profile [default: the one `fasa calibrate` puts beside the model]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,

    /// Changes to the preset
    #[command(flatten)]
    pub fasa: FasaArgs,
}

/// Changes to a preset.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "FASA (each overrides the preset)")]
pub struct FasaArgs {
    /// Number format of the sketch
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub sketch: Option<SketchFormat>,

    /// Chunks per head in the sketch
    #[arg(long, value_name = "N")]
    pub chunks: Option<u16>,

    /// Chunks per query head or once per KV head; the profile must have been calibrated so
    #[arg(long, value_enum, value_name = "SCOPE")]
    pub chunks_per: Option<ScopeName>,

    /// How chunks were ranked; the profile must have been calibrated so
    #[arg(long, value_enum)]
    pub criterion: Option<CriterionName>,

    /// Choose tokens per query head or once per KV head
    #[arg(long, value_enum, value_name = "SCOPE")]
    pub tokens_per: Option<ScopeName>,

    /// First tokens that are always kept
    #[arg(long, value_name = "N")]
    pub sinks: Option<u32>,

    /// Last tokens that are always kept
    #[arg(long, value_name = "N")]
    pub recent: Option<u32>,

    /// First layers that attend to everything
    #[arg(long, value_name = "N")]
    pub dense_layers: Option<u32>,
}

impl FasaArgs {
    /// The preset with these changes.
    pub fn apply(&self, preset: Preset) -> FasaConfig {
        let mut config = preset.config();
        if let Some(format) = self.sketch {
            config.precision = format.precision();
        }
        if let Some(chunks) = self.chunks {
            config.chunks = ChunkCount::Count(chunks);
        }
        if let Some(scope) = self.chunks_per {
            config.chunk_scope = scope.scope();
        }
        if let Some(criterion) = self.criterion {
            config.criterion = criterion.kind();
        }
        if let Some(scope) = self.tokens_per {
            config.token_scope = scope.scope();
        }
        config.guarantees.sinks = self.sinks.unwrap_or(config.guarantees.sinks);
        config.guarantees.recent = self.recent.unwrap_or(config.guarantees.recent);
        config.dense_layers = self.dense_layers.unwrap_or(config.dense_layers);
        config
    }
}

/// Methods on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// Frequency-aware sparse attention
    #[default]
    Fasa,
    /// Every token
    Dense,
    /// The best tokens by their true attention: reads everything, shows what ranking could reach
    Oracle,
    /// StreamingLLM: the first and the last tokens
    Streaming,
}

/// FASA's presets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// int4 sketch of half the chunks, per KV head, margin criterion, 4 sinks, 16 recent
    #[default]
    Default,
    /// As published: f16, a quarter of the chunks, per query head, contextual agreement
    Paper,
}

impl Preset {
    /// Its settings.
    pub fn config(self) -> FasaConfig {
        match self {
            Preset::Default => FasaConfig::DEFAULT,
            Preset::Paper => FasaConfig::PAPER,
        }
    }

    /// Its name, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Default => "default",
            Preset::Paper => "paper",
        }
    }
}

/// Number formats on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SketchFormat {
    /// Half a byte per dimension
    Int4,
    /// A byte per dimension
    Int8,
    /// Two bytes
    F16,
    /// Four bytes: exact
    F32,
}

impl SketchFormat {
    /// The format.
    pub fn precision(self) -> Precision {
        match self {
            SketchFormat::Int4 => Precision::Int4,
            SketchFormat::Int8 => Precision::Int8,
            SketchFormat::F16 => Precision::F16,
            SketchFormat::F32 => Precision::F32,
        }
    }
}

/// Scopes on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScopeName {
    /// Once for the query heads that share a KV head
    KvHead,
    /// For each query head
    QueryHead,
}

impl ScopeName {
    /// The scope.
    pub fn scope(self) -> Scope {
        match self {
            ScopeName::KvHead => Scope::KvHead,
            ScopeName::QueryHead => Scope::QueryHead,
        }
    }
}

/// Criteria on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CriterionName {
    /// How much a chunk raises what the head attends to over the average token
    Margin,
    /// The paper's: how many of the best K tokens a chunk finds alone
    Agreement,
    /// Chunks that find more of the best K tokens together: each is chosen for what it adds to those before it
    Greedy,
}

impl CriterionName {
    /// The criterion.
    pub fn kind(self) -> CriterionKind {
        match self {
            CriterionName::Margin => CriterionKind::Margin,
            CriterionName::Agreement => CriterionKind::Agreement,
            CriterionName::Greedy => CriterionKind::Greedy,
        }
    }
}

/// `256` is tokens, `3%` is a share. A bare fraction would leave in doubt which of the two it is.
pub fn parse_budget(text: &str) -> Result<Budget> {
    let budget = match text.strip_suffix('%') {
        Some(percent) => match percent.trim().parse::<f32>() {
            Ok(percent) => Budget::Ratio(percent / 100.0),
            Err(_) => bail!("`{text}` is no percentage; write for example `3%`"),
        },
        None => match text.parse() {
            Ok(tokens) => Budget::Tokens(tokens),
            Err(_) => bail!("`{text}` is no budget; write a number of tokens such as `256`, or a share such as `3%`"),
        },
    };
    if budget.validate().is_err() {
        bail!("a budget of `{text}` keeps no token or more than there are; use at least 1, or above 0% up to 100%");
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        for (text, want) in [
            ("256", Some(Budget::Tokens(256))),
            ("1", Some(Budget::Tokens(1))),
            ("3%", Some(Budget::Ratio(0.03))),
            ("100%", Some(Budget::Ratio(1.0))),
            ("0", None),
            ("0%", None),
            ("101%", None),
            ("0.03", None),
            ("-1", None),
            ("many", None),
            ("NaN%", None),
        ] {
            assert_eq!(parse_budget(text).ok(), want, "{text}");
        }
    }
}
