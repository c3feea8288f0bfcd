//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::read_whole;
use crate::error::{Error, Result};

/// An index has about a hundred bytes per tensor.
const MAX_FILE_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensor name to shard file name; every file name is a plain one, inside the folder.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_whole(path, MAX_FILE_BYTES)?;
    let index: Index = serde_json::from_slice(&json)
        .map_err(|error| Error::checkpoint(path, format!("the index is damaged: {error}"), "download it again"))?;
    if index.weight_map.is_empty() {
        return Err(Error::checkpoint(path, "`weight_map` names no tensor", "download it again"));
    }
    for (tensor, file) in &index.weight_map {
        if !is_plain_shard_name(file) {
            return Err(Error::tensor(
                path,
                tensor,
                format!("is said to be in {file:?}, which is no plain .safetensors file name"),
                "shards must lie in the folder of the index; download the checkpoint from a source you trust",
            ));
        }
    }
    Ok(index.weight_map)
}

/// The index comes from strangers: it must not lead out of the folder on any system.
fn is_plain_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::is_plain_shard_name;

    #[test]
    fn only_plain_names_pass() {
        assert!(is_plain_shard_name("model-00001-of-00003.safetensors"));
        for name in [
            "",
            ".safetensors",
            "..",
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:x.safetensors",
            "x\0.safetensors",
            "x.bin",
        ] {
            assert!(!is_plain_shard_name(name), "{name:?}");
        }
    }
}
