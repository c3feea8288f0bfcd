//! The metadata as a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::header::{Gguf, Value};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// How texts are split before they are encoded, by the name in `tokenizer.ggml.pre`.
enum Split {
    /// GPT-2's own expression.
    Gpt2,
    /// The same, after digits one by one.
    Digits,
    /// An expression; `true` if texts are brought to NFC first.
    Pattern(&'static str, bool),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn split(pre: &str) -> Option<Split> {
    Some(match pre {
        "gpt-2" => Split::Gpt2,
        "smollm" => Split::Digits,
        "llama-bpe" | "llama3" | "llama-v3" => Split::Pattern(LLAMA3, false),
        "qwen2" => Split::Pattern(QWEN2, true),
        _ => return None,
    })
}

/// ggml's kinds of tokens.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

const CONVERT: &str = "convert the model again with llama.cpp, or use its safetensors";

impl Gguf {
    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a field that is missing or damaged, [`Error::Unsupported`] for a kind of tokenizer that is
    /// not translated.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let json = self.tokenizer_json()?.to_string();
        Tokenizer::from_bytes(&self.path().display().to_string(), json.as_bytes())
    }

    /// What a `tokenizer_config.json` holds: special tokens by their names, and the chat template.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] without a vocabulary.
    pub fn tokenizer_settings(&self) -> Result<Vec<u8>> {
        let tokens = self.tokens()?;
        let mut named = serde_json::Map::new();
        for name in ["bos", "eos", "padding", "unknown"] {
            let id = self.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(Value::integer);
            if let Some(token) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) {
                let name = match name {
                    "padding" => "pad",
                    "unknown" => "unk",
                    other => other,
                };
                named.insert(format!("{name}_token"), json!(token));
            }
        }
        // llama.cpp's default depends on the kind of tokenizer.
        let default = self.get("tokenizer.ggml.model").and_then(Value::text) == Some("llama");
        let add = match self.get("tokenizer.ggml.add_bos_token") {
            Some(Value::Flag(add)) => *add,
            _ => default || self.get("tokenizer.ggml.pre").and_then(Value::text) == Some("llama-bpe"),
        };
        named.insert("add_bos_token".into(), json!(add));
        if let Some(template) = self.get("tokenizer.chat_template").and_then(Value::text) {
            named.insert("chat_template".into(), json!(template));
        }
        Ok(Json::Object(named).to_string().into_bytes())
    }

    fn field_error(&self, field: &str, problem: &str) -> Error {
        Error::tokenizer(self.path(), format!("field `tokenizer.ggml.{field}` {problem}"), CONVERT)
    }

    fn tokens(&self) -> Result<&[String]> {
        match self.get("tokenizer.ggml.tokens") {
            Some(Value::Texts(tokens)) => Ok(tokens),
            _ => Err(self.field_error("tokens", "is missing or no list of texts")),
        }
    }

    fn tokenizer_json(&self) -> Result<Json> {
        let tokens = self.tokens()?;
        let kinds = match self.get("tokenizer.ggml.token_type") {
            None => Vec::new(),
            Some(Value::Numbers(kinds)) if kinds.len() == tokens.len() => {
                kinds.iter().map(|kind| *kind as u64).collect()
            }
            Some(_) => return Err(self.field_error("token_type", "has not one number for each token")),
        };
        let added: Vec<Json> = (0u32..)
            .zip(tokens)
            .zip(&kinds)
            .filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED))
            .map(|((id, token), kind)| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL
                })
            })
            .collect();
        let vocab: serde_json::Map<String, Json> =
            (0u32..).zip(tokens).map(|(id, token)| (token.clone(), json!(id))).collect();
        if vocab.len() != tokens.len() {
            return Err(self.field_error("tokens", "names a token twice"));
        }
        let (model, parts) = match self.get("tokenizer.ggml.model").and_then(Value::text) {
            Some("gpt2") => self.byte_level(vocab)?,
            Some("llama") => self.sentence_piece(vocab, tokens, &kinds)?,
            Some(other) => {
                let what = format!("`tokenizer.ggml.model` \"{other}\"");
                return Err(Error::unsupported(self.path(), what, "use the safetensors of this model"));
            }
            None => return Err(self.field_error("model", "is missing or no text")),
        };
        let [normalizer, pre_tokenizer, decoder] = parts;
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model
        }))
    }

    /// Byte-level BPE: model, then normalizer, pre-tokenizer and decoder.
    fn byte_level(&self, vocab: serde_json::Map<String, Json>) -> Result<(Json, [Json; 3])> {
        let Some(Value::Texts(merges)) = self.get("tokenizer.ggml.merges") else {
            return Err(self.field_error("merges", "is missing or no list of texts"));
        };
        let pre = self.get("tokenizer.ggml.pre").and_then(Value::text).unwrap_or("gpt-2");
        let Some(split) = split(pre) else {
            let what = format!("`tokenizer.ggml.pre` \"{pre}\"");
            return Err(Error::unsupported(self.path(), what, "use the safetensors of this model"));
        };
        let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |first: Json, use_regex| json!({"type": "Sequence", "pretokenizers": [first, level(use_regex)]});
        let whole_words = matches!(split, Split::Pattern(LLAMA3, _));
        let (normalizer, pre_tokenizer) = match split {
            Split::Gpt2 => (Json::Null, level(true)),
            Split::Digits => (Json::Null, sequence(json!({"type": "Digits", "individual_digits": true}), true)),
            Split::Pattern(pattern, composed) => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
                let normalizer = if composed { json!({"type": "NFC"}) } else { Json::Null };
                (normalizer, sequence(split, false))
            }
        };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
            "vocab": vocab, "merges": merges
        });
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        Ok((model, [normalizer, pre_tokenizer, decoder]))
    }

    /// SentencePiece's BPE: pairs are merged by the score of what they give, and bytes stand in for what has no token.
    fn sentence_piece(
        &self,
        vocab: serde_json::Map<String, Json>,
        tokens: &[String],
        kinds: &[u64],
    ) -> Result<(Json, [Json; 3])> {
        let Some(Value::Numbers(scores)) = self.get("tokenizer.ggml.scores").filter(|_| kinds.len() == tokens.len())
        else {
            return Err(self.field_error("scores", "or `tokenizer.ggml.token_type` is missing"));
        };
        if scores.len() != tokens.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(self.field_error("scores", "has not one number for each token"));
        }
        let plain = |id: usize| !matches!(kinds[id], CONTROL | USER_DEFINED | BYTE);
        let ids: HashMap<&str, usize> =
            tokens.iter().enumerate().filter(|(id, _)| plain(*id)).map(|(id, token)| (token.as_str(), id)).collect();
        // Tokens by their score; of the pairs that give one, that with the longest left part first, as `transformers` does.
        let mut merges: Vec<(f64, usize, usize)> = Vec::new();
        for (token, id) in &ids {
            // Words of this length are none; a longer one would only make this quadratic.
            for (at, _) in token.char_indices().skip(1).take(256) {
                if ids.contains_key(&token[..at]) && ids.contains_key(&token[at..]) {
                    merges.push((-scores[*id], *id, at));
                }
            }
        }
        merges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(b.2.cmp(&a.2)));
        let merges: Vec<[&str; 2]> = merges.iter().map(|(_, id, at)| tokens[*id].split_at(*at).into()).collect();
        let unknown = self.get("tokenizer.ggml.unknown_token_id").and_then(Value::integer);
        let unknown = unknown.and_then(|id| tokens.get(usize::try_from(id).ok()?));
        let prefix = !matches!(self.get("tokenizer.ggml.add_space_prefix"), Some(Value::Flag(false)));
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizer = match prefix {
            true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}),
            false => replace,
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        decoders.extend(prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges
        });
        Ok((model, [normalizer, Json::Null, json!({"type": "Sequence", "decoders": decoders})]))
    }
}
