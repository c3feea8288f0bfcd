//! Models by their names on the Hugging Face hub, kept in the cache that its other programs use.
//!
//! Needs the feature `hub`. `HF_HOME` moves the cache, `HF_TOKEN` (else the token file that `hf auth login` writes) opens
//! models behind a licence, `HF_HUB_OFFLINE=1` uses what the cache holds, `HF_ENDPOINT` names a mirror. A download that was
//! cut short is continued.

use anyhow::Result;
use std::path::{Path, PathBuf};

/// The folder or file that `--model` names; what looks like `org/name` and is neither is fetched.
///
/// # Errors
/// If it has to be fetched and cannot be.
pub fn resolve(model: &Path) -> Result<PathBuf> {
    match model.to_str().filter(|name| !model.exists() && is_name(name)) {
        None => Ok(model.to_owned()),
        Some(name) => fetch(name),
    }
}

/// `org/name`, of the letters that the hub allows.
fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("..")
    };
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name)) && !text.ends_with(".gguf")
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &str) -> Result<PathBuf> {
    anyhow::bail!(
        "there is no folder `{name}`; to fetch a model of that name from the Hugging Face hub, build with `--features hub`, \
         or download it yourself (`hf download {name} --local-dir FOLDER`) and pass `--model FOLDER`"
    )
}

#[cfg(feature = "hub")]
use online::fetch;

#[cfg(feature = "hub")]
mod online {
    use crate::terminal;
    use anyhow::{Context, Result, bail};
    use hf_hub::api::sync::{ApiBuilder, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};
    use std::path::PathBuf;

    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    /// Files beside the weights; only the first two must be there.
    const FILES: [&str; 5] =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"];
    const NEEDED: usize = 2;
    const BRANCH: &str = "main";

    pub(super) fn fetch(name: &str) -> Result<PathBuf> {
        let cache = Cache::from_env();
        let main = Repo::with_revision(name.into(), RepoType::Model, BRANCH.into());
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false")) {
            let config = cache.repo(main).get(FILES[0]).with_context(|| {
                let path = cache.path().display();
                format!("`{name}` is not in the cache `{path}`, and HF_HUB_OFFLINE is set; unset it to fetch the model")
            })?;
            return Ok(config.parent().map(PathBuf::from).unwrap_or_default());
        }
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()).or_else(|| cache.token());
        let api = ApiBuilder::from_env().with_token(token).with_retries(3).build().context("cannot reach the hub")?;
        let info = api.repo(main.clone()).info().with_context(|| {
            format!(
                "cannot find the model `{name}` on the hub; check its name and the network, set HF_TOKEN for one behind a \
                 licence, or HF_HUB_OFFLINE=1 to use the cache"
            )
        })?;
        // All files of one commit, whatever is published meanwhile.
        let repo = api.repo(Repo::with_revision(name.into(), RepoType::Model, info.sha.clone()));
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        for file in &FILES[..NEEDED] {
            if !has(file) {
                bail!(
                    "`{name}` has no {file} on the hub: it is no model in the format of `transformers`; name another"
                );
            }
        }
        let mut files: Vec<String> = FILES.iter().filter(|file| has(file)).map(|file| (*file).into()).collect();
        if has(SINGLE) {
            files.push(SINGLE.into());
        } else if has(INDEX) {
            files.push(INDEX.into());
            files.extend(shards(&get(&repo, name, INDEX)?)?);
        } else {
            bail!("`{name}` has no weights in safetensors on the hub; name a model that has");
        }
        let mut folder = PathBuf::new();
        for file in &files {
            let path = get(&repo, name, file)?;
            folder = path.parent().map(PathBuf::from).unwrap_or_default();
        }
        // So that it is found under its branch without the hub.
        let created = cache.repo(main).create_ref(&info.sha);
        created.with_context(|| format!("cannot write to the cache `{}`; check its rights", cache.path().display()))?;
        Ok(folder)
    }

    fn get(repo: &ApiRepo, name: &str, file: &str) -> Result<PathBuf> {
        repo.get(file).with_context(|| {
            format!("cannot fetch {file} of `{name}`; run the same again, the download goes on where it stopped")
        })
    }

    /// The shards that an index names, as plain names: the checkpoint's own reader refuses others later, with the reason.
    fn shards(index: &std::path::Path) -> Result<Vec<String>> {
        let text = std::fs::read(index).with_context(|| format!("cannot read `{}`", index.display()))?;
        let json: serde_json::Value = serde_json::from_slice(&text)
            .with_context(|| format!("`{}` is no JSON; delete it and fetch the model again", index.display()))?;
        let files = json["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        let mut names: Vec<String> = files.filter_map(|file| file.as_str()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names.retain(|file| {
            file.ends_with(".safetensors") && !file.starts_with('.') && !file.contains(['/', '\\', ':'])
        });
        terminal::note(format_args!("{} shards of weights", names.len()));
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for name in ["Qwen/Qwen3-0.6B", "a/b", "org_1/x.y-z"] {
            assert!(is_name(name), "{name}");
        }
        for path in
            ["nano", "./nano", "../a", "/a/b", "a/b/c", "a/", "/a", "a/b.gguf", "a b/c", "a/..b", "C:/x", ".a/b"]
        {
            assert!(!is_name(path), "{path}");
        }
    }
}
