//! From which context length on FASA is faster on this machine: measured once, remembered, read by `fasa generate`.

use anyhow::{Context, Result, bail};
use fasa_burn::Dtype;
use fasa_burn::config::ModelConfig;
use fasa_burn::measure::AttentionShape;
use fasa_core::{Budget, FasaConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `--dense-below` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseBelow {
    /// What `fasa bench crossover` remembered for this model's shape and these settings; 0 if it never ran.
    Measured,
    /// So many tokens.
    Tokens(usize),
}

/// `measured` or a number of tokens.
///
/// # Errors
/// For anything else.
pub fn parse_dense_below(text: &str) -> Result<DenseBelow> {
    match text.parse() {
        Ok(tokens) => Ok(DenseBelow::Tokens(tokens)),
        Err(_) if text == "measured" => Ok(DenseBelow::Measured),
        Err(_) => bail!("`{text}` is neither `measured` nor a number of tokens"),
    }
}

/// What a measurement holds for: another machine, shape or setting has another crossover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    device: String,
    threads: usize,
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: String,
    settings: String,
    budget: String,
}

impl Conditions {
    /// These heads in this format with these settings, on the threads of this process.
    pub fn new(device: &str, shape: AttentionShape, dtype: Dtype, config: &FasaConfig, budget: Budget) -> Self {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        // Which layers are dense says nothing about the speed of one that is not.
        let settings = FasaConfig { dense_layers: 0, ..*config };
        Self {
            device: device.into(),
            threads: rayon::current_num_threads(),
            query_heads,
            kv_heads,
            head_dim,
            dtype: dtype.to_string(),
            settings: format!("{settings:?}"),
            budget: format!("{budget:?}"),
        }
    }
}

/// The heads of a model.
pub fn shape(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    conditions: Conditions,
    /// `None`: FASA was not faster at any length that was tried.
    faster_from: Option<usize>,
}

/// Nobody measures more; a larger file is none of ours.
const LARGEST: u64 = 1 << 20;

/// The file of this machine's measurements, in the user's cache folder: `$XDG_CACHE_HOME/fasa` or `~/.cache/fasa` on Linux.
pub fn path() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("fasa").join("crossover.json"))
}

fn read(path: &Path) -> Result<Vec<Entry>> {
    let mend = || format!("cannot read `{}`; delete it and run `fasa bench crossover` again", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error).with_context(mend),
        Ok(data) if data.len() > LARGEST => bail!(mend()),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).with_context(mend)?;
    serde_json::from_slice(&bytes).with_context(mend)
}

/// Remembers a measurement in `path`, in place of an older one under the same conditions.
///
/// # Errors
/// If the file can be neither read nor written.
pub fn remember(path: &Path, conditions: Conditions, faster_from: Option<usize>) -> Result<()> {
    let mut entries = read(path)?;
    entries.retain(|entry| entry.conditions != conditions);
    entries.push(Entry { conditions, faster_from });
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Renamed into place: a reader never sees half of it.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&part, serde_json::to_vec_pretty(&entries)?)?;
        std::fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write `{}`; set XDG_CACHE_HOME to a folder you may write", path.display()))
}

/// Under how many tokens attention should be dense: 0 if nothing was measured under these conditions, everything if FASA
/// was never faster.
///
/// # Errors
/// If there is a file that cannot be read.
pub fn recall(path: &Path, conditions: &Conditions) -> Result<usize> {
    let entries = read(path)?;
    let found = entries.into_iter().find(|entry| entry.conditions == *conditions);
    Ok(found.map_or(0, |entry| entry.faster_from.unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(kv_heads: usize, budget: u32) -> Conditions {
        let shape = AttentionShape { query_heads: 8, kv_heads, head_dim: 64 };
        Conditions::new("cpu", shape, Dtype::F16, &FasaConfig::DEFAULT, Budget::Tokens(budget))
    }

    #[test]
    fn measurements_are_remembered_for_their_conditions() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new").join("crossover.json");
        assert_eq!(recall(&path, &conditions(2, 256)).expect("no file yet"), 0);
        for (kv_heads, budget, from) in [(2, 256, Some(900)), (4, 256, None), (2, 64, Some(300)), (2, 256, Some(700))] {
            remember(&path, conditions(kv_heads, budget), from).expect("written");
        }
        for (kv_heads, budget, want) in [(2, 256, 700), (4, 256, usize::MAX), (2, 64, 300), (1, 256, 0)] {
            assert_eq!(recall(&path, &conditions(kv_heads, budget)).expect("readable"), want, "{kv_heads} {budget}");
        }
        assert_eq!(std::fs::read_dir(folder.path().join("new")).expect("there").count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("crossover.json");
        for bad in ["", "{}", "[{}]", "[1]", "[{\"conditions\": 3, \"faster_from\": -1}]"] {
            std::fs::write(&path, bad).expect("written");
            let error = recall(&path, &conditions(2, 256)).expect_err(bad).to_string();
            assert!(error.contains("crossover.json") && error.contains("delete it"), "{error}");
            assert!(remember(&path, conditions(2, 256), None).is_err());
        }
    }

    #[test]
    fn arguments() {
        for (text, want) in [
            ("measured", Some(DenseBelow::Measured)),
            ("0", Some(DenseBelow::Tokens(0))),
            ("4096", Some(DenseBelow::Tokens(4096))),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(parse_dense_below(text).ok(), want, "{text}");
        }
    }
}
