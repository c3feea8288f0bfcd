//! Perplexity as in the FASA paper: windows of a text, of which a first part is read densely and the rest decoded.

use super::{Metric, Suite};
use crate::eval::question::{Question, Then};
use crate::eval::record::Setting;
use crate::model::LanguageModel;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Windows of a text, one after the other.
pub struct Perplexity {
    name: String,
    ids: Vec<u32>,
    bos: Option<u32>,
    prefill: usize,
    decoded: usize,
    windows: u64,
}

impl Perplexity {
    /// At most `windows` windows of `prefill` tokens read densely, the start token among them, and `decoded` more.
    ///
    /// # Errors
    /// If the text cannot be read or is shorter than a window.
    pub fn new(model: &LanguageModel, path: &Path, prefill: usize, decoded: usize, windows: u64) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the text `{}`; check the path, and that it is UTF-8", path.display())
        })?;
        let positions = model.decoder.config().max_position_embeddings;
        ensure!(prefill > 1, "a window of perplexity reads at least 2 tokens; raise `--tokens`");
        ensure!(decoded > 1, "`--decoded` is {decoded}; use at least 2");
        ensure!(
            prefill + decoded <= positions,
            "`--tokens` and `--decoded` together are {}, the model has {positions} positions; lower one of them",
            prefill + decoded
        );
        let ids = model.tokenizer.encode(&text)?;
        let bos = model.decoder.config().bos_token_id;
        let body = prefill - usize::from(bos.is_some()) + decoded;
        let available = (ids.len() / body) as u64;
        ensure!(
            available > 0,
            "`{}` has {} tokens, one window takes {body}; give a longer text or lower `--tokens`",
            path.display(),
            ids.len()
        );
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Self { name, ids, bos, prefill, decoded, windows: windows.min(available) })
    }
}

impl Suite for Perplexity {
    fn task(&self) -> String {
        "ppl".into()
    }

    fn len(&self) -> u64 {
        self.windows
    }

    fn metric(&self) -> Metric {
        Metric::Likelihood
    }

    fn describe(&self, setting: &mut Setting) {
        setting.tokens = self.prefill;
        setting.protocol = format!("{} tokens decoded", self.decoded);
        setting.data = format!("{}, {} tokens", self.name, self.ids.len());
    }

    fn question(&self, _model: &LanguageModel, index: u64) -> Result<Question> {
        let read = self.prefill - usize::from(self.bos.is_some());
        let start = index as usize * (read + self.decoded);
        let window = self.ids.get(start..start + read + self.decoded).context("the text has fewer windows")?;
        let (read, decoded) = window.split_at(read);
        let prefill = self.bos.iter().chain(read).copied().collect();
        Ok(Question { prefill, then: Then::Likelihood { tokens: decoded.to_vec() } })
    }
}
