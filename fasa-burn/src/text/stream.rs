//! Decoding while the tokens come.
//!
//! A token alone has no text of its own: it may be part of a character, and decoders drop the space in front of the
//! first token they see. So each new token is decoded together with the few before it, and what those gave is taken
//! off the front. Replacement characters at the end may be a character whose last bytes are still to come; they are
//! held back until that is settled.

use super::Tokenizer;
use crate::error::Result;

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// An unfinished character has at most three of its bytes, and decoders show it as at most one replacement each.
const MAX_HELD: usize = 3;

/// A window of more tokens holds no text that still matters: a run of bytes that are no UTF-8.
const MAX_WINDOW: usize = 32;

/// What remains of such a window: enough tokens to give the held replacement characters again, up to three bytes each.
const TRIMMED_WINDOW: usize = 4 * MAX_HELD;

/// Turns token ids into text as they come, never half a character. The pieces joined are what
/// [`Tokenizer::decode`] gives for all ids at once, but for runs of bytes that are no UTF-8, where the number of
/// replacement characters may differ. Each token costs the decoding of a small window, however long the text.
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The context, then the tokens whose text is not all given out.
    window: Vec<u32>,
    /// Number of tokens at the front of the window that are context: their text is given out.
    context: usize,
    /// The part of the window's text that is given out.
    shown: String,
    /// The rest of the window's text: replacement characters that may become something else.
    held: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), context: 0, shown: String::new(), held: String::new() }
    }

    /// The text that the next token completes; empty if it ends inside a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        if !self.tokenizer.has_token(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let mut text = self.tokenizer.decode(&self.window)?;
        let mut out = String::new();
        if !text.starts_with(&self.shown) {
            // The token changed text that is already given out, as when a byte that starts a character follows others
            // that were complete, and the decoder gives the whole run up. It is then read on its own.
            out = self.flush();
            self.window.push(id);
            text = self.tokenizer.decode(&self.window)?;
        }
        let settled = settled_len(&text);
        // Held text that was given out before, by a trimmed window, must not come twice.
        out.push_str(text.get(self.shown.len()..settled).unwrap_or_default());
        let grown = settled > self.shown.len();
        self.held.clear();
        if settled < text.len() {
            let start = settled.max(self.shown.len());
            self.held.push_str(&text[start..]);
            text.truncate(start);
            self.shown = text;
        } else if grown {
            self.window.drain(..self.context);
            self.context = self.window.len();
            self.shown = self.tokenizer.decode(&self.window)?;
        }
        if self.window.len() > MAX_WINDOW {
            out.push_str(&self.trim()?);
        }
        Ok(out)
    }

    /// The text still held back, as replacement characters, when no more tokens come. The stream is then as new.
    pub fn flush(&mut self) -> String {
        self.window.clear();
        self.context = 0;
        self.shown.clear();
        std::mem::take(&mut self.held)
    }

    /// Forgets all but the last tokens of the window. Gives the held text if it cannot be kept.
    fn trim(&mut self) -> Result<String> {
        self.window.drain(..self.window.len() - TRIMMED_WINDOW);
        self.context = 0;
        let text = self.tokenizer.decode(&self.window)?;
        match text.strip_suffix(self.held.as_str()) {
            Some(shown) => {
                self.shown = shown.to_owned();
                Ok(String::new())
            }
            None => Ok(self.flush()),
        }
    }
}

/// Length in bytes of the text without the replacement characters at its end that may still change.
fn settled_len(text: &str) -> usize {
    let mut settled = text;
    for _ in 0..MAX_HELD {
        match settled.strip_suffix(REPLACEMENT) {
            Some(rest) => settled = rest,
            None => break,
        }
    }
    settled.len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};
    use serde_json::json;

    const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano/tokenizer.json");
    const TEXTS: &[&str] = &[
        "",
        "a",
        "The secret code of happy-horse is 12345.\nQuestion: What is it?\nAnswer: 12345\n",
        "  two  spaces \n\n and lines ",
        "naïve café",
        "你好,世界",
        "👩‍👩‍👧‍👦 and 🇩🇪",
        "e\u{301}",
        "a\u{fffd}b",
        "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd} end",
        "<|endoftext|>x",
    ];

    /// Each byte a token, and words with a visible space, as in SentencePiece models.
    fn byte_fallback() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(byte));
        }
        for (id, token) in (256..).zip(["▁a", "▁b", "▁", "c"]) {
            vocab.insert(token.into(), json!(id));
        }
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": [],
            },
        });
        Tokenizer::from_bytes("bytes.json", tokenizer.to_string().as_bytes()).unwrap()
    }

    fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.flush());
        assert_eq!(stream.flush(), "", "flush empties the stream");
        pieces
    }

    #[test]
    fn the_pieces_are_the_text() {
        let tokenizer = Tokenizer::read(NANO).unwrap();
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            let pieces = pieces(&tokenizer, &ids);
            assert_eq!(pieces.concat(), *text);
            if !text.contains(REPLACEMENT) {
                assert!(!pieces.iter().any(|piece| piece.contains(REPLACEMENT)), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let nano = Tokenizer::read(NANO).unwrap();
        let ids = nano.encode("👩").unwrap();
        assert!(ids.len() > 1, "the fixture spells it in bytes");
        let mut expected = vec![""; ids.len() + 1];
        expected[ids.len() - 1] = "👩";
        assert_eq!(pieces(&nano, &ids), expected);

        let bytes = byte_fallback();
        let ids: Vec<u32> = "é€".bytes().map(u32::from).collect();
        assert_eq!(pieces(&bytes, &ids), ["", "é", "", "", "€", ""]);
    }

    #[test]
    fn plain_tokens_come_at_once() {
        let tokenizer = Tokenizer::read(NANO).unwrap();
        let ids = tokenizer.encode("The secret code is 12345.").unwrap();
        let pieces = pieces(&tokenizer, &ids);
        assert!(pieces[..ids.len()].iter().all(|piece| !piece.is_empty()), "{pieces:?}");
    }

    #[test]
    fn spaces_between_words_survive_decoders_that_strip_the_first() {
        let tokenizer = byte_fallback();
        assert_eq!(pieces(&tokenizer, &[256, 257, 259, 256]), ["a", " b", "c", " a", ""]);
        // A token without text, and ids without a token, between words.
        assert_eq!(pieces(&tokenizer, &[258, 256, 9999, 257]).concat(), " a b");
        let mixed: Vec<u32> = [256].into_iter().chain("é".bytes().map(u32::from)).chain([257]).collect();
        assert_eq!(pieces(&tokenizer, &mixed).concat(), "aé b");
    }

    #[test]
    fn an_unfinished_character_comes_out_at_the_flush() {
        let tokenizer = byte_fallback();
        assert_eq!(pieces(&tokenizer, &[256, 0xe2, 0x82]).concat(), "a\u{fffd}\u{fffd}");
        let tokenizer = Tokenizer::read(NANO).unwrap();
        let mut ids = tokenizer.encode("ok 👩").unwrap();
        ids.pop();
        assert_eq!(pieces(&tokenizer, &ids).concat(), "ok \u{fffd}");
    }

    #[test]
    fn random_tokens_give_what_decoding_them_at_once_gives() {
        let tokenizer = Tokenizer::read(NANO).unwrap();
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        // Below 256 are the single bytes: mostly no UTF-8.
        for limit in [260, 600, 4200] {
            for _ in 0..60 {
                let ids: Vec<u32> = (0..40).map(|_| rng.next_u32() % limit).collect();
                let joined = pieces(&tokenizer, &ids).concat();
                assert_eq!(joined, tokenizer.decode(&ids).unwrap(), "{ids:?}");
            }
        }
    }

    #[test]
    fn endless_garbage_keeps_the_window_small_and_text_after_it_is_whole() {
        let nano = Tokenizer::read(NANO).unwrap();
        let byte_of = |tokenizer: &Tokenizer| {
            let ids = tokenizer.encode("👩").unwrap();
            *ids.last().unwrap()
        };
        for (tokenizer, garbage) in [(nano.clone(), byte_of(&nano)), (byte_fallback(), 0xff)] {
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            for _ in 0..500 {
                text.push_str(&stream.push(garbage).unwrap());
                assert!(stream.window.len() <= MAX_WINDOW);
            }
            text.push_str(&stream.flush());
            assert!(text.chars().all(|c| c == REPLACEMENT));
            assert_eq!(text.chars().count(), 500);
        }
        let mut stream = nano.stream();
        let mut text = String::new();
        let word = nano.encode(" 你 word").unwrap();
        for id in std::iter::repeat_n(byte_of(&nano), 100).chain(word) {
            text.push_str(&stream.push(id).unwrap());
        }
        text.push_str(&stream.flush());
        assert_eq!(text, format!("{} 你 word", REPLACEMENT.to_string().repeat(100)));
    }
}
