//! What stands between the facts.

use anyhow::{Result, ensure};

use super::kv::Lines;
use super::multikey::Needles;
use super::rng::Draws;
use super::words::Words;

/// The prose that facts are hidden in. `kv` and `multikey` have none: all they hold is facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Haystack<'a> {
    /// Sentences from the built-in templates.
    #[default]
    Generated,
    /// Sentences of a given text in their order, from a drawn one onwards, wrapping around at the end. White space is
    /// reduced to single spaces.
    Text(&'a str),
}

/// A source of filler, as much as the length asks for.
pub(super) enum Filler<'a> {
    Templates(Words<'static>),
    Sentences { all: Vec<Vec<&'a str>>, next: usize },
    Lines(Lines),
    Needles(Needles),
}

impl<'a> Filler<'a> {
    pub(super) fn prose(haystack: Haystack<'a>, words: Words<'static>, draws: &mut Draws) -> Result<Self> {
        match haystack {
            Haystack::Generated => Ok(Self::Templates(words)),
            Haystack::Text(text) => {
                let all = sentences(text);
                ensure!(!all.is_empty(), "the haystack text has no words in it");
                let next = draws.between(0, all.len() - 1);
                Ok(Self::Sentences { all, next })
            }
        }
    }

    /// The next piece, or nothing when the source has run dry.
    pub(super) fn next(&mut self, draws: &mut Draws) -> Option<String> {
        match self {
            Self::Templates(words) => Some(words.sentence(draws)),
            Self::Sentences { all, next } => {
                let sentence = all.get(*next)?.join(" ");
                *next = (*next + 1) % all.len();
                Some(sentence)
            }
            Self::Lines(lines) => lines.next(draws),
            Self::Needles(needles) => needles.next(draws),
        }
    }

    /// What stands between two pieces of a context.
    pub(super) fn separator(&self) -> &'static str {
        match self {
            Self::Templates(_) | Self::Sentences { .. } | Self::Needles(_) => " ",
            Self::Lines(_) => "\n",
        }
    }
}

/// Text without full stops (tables, code, verse) is cut after this many words, so that lengths stay controllable.
const MAX_SENTENCE_WORDS: usize = 60;

/// Sentences as lists of words. Simple on purpose: a wrong cut costs nothing, as every piece is put back in order.
pub(crate) fn sentences(text: &str) -> Vec<Vec<&str>> {
    let mut all = Vec::new();
    let mut current = Vec::new();
    for word in text.split_whitespace() {
        current.push(word);
        if ends_sentence(word) || current.len() == MAX_SENTENCE_WORDS {
            all.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches(['"', '\'', ')', ']', '”', '’', '_']);
    bare.ends_with(['.', '!', '?']) && !["Mr.", "Mrs.", "Dr.", "St."].contains(&bare)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::{Task, rng::Purpose};

    fn cut(text: &str) -> Vec<String> {
        sentences(text).iter().map(|s| s.join(" ")).collect()
    }

    #[test]
    fn text_is_cut_at_sentence_ends() {
        assert_eq!(
            cut("He said\n \"Go!\" and Mr. Grey went.  Did he? (Yes.) The end"),
            ["He said \"Go!\"", "and Mr. Grey went.", "Did he?", "(Yes.)", "The end"]
        );
        assert!(cut(" \n ").is_empty());
    }

    #[test]
    fn endless_sentences_are_cut() {
        let text = "word ".repeat(150);
        let lengths: Vec<usize> = sentences(&text).iter().map(Vec::len).collect();
        assert_eq!(lengths, [60, 60, 30]);
    }

    #[test]
    fn a_text_goes_on_in_order_and_wraps_around() {
        let mut draws = Draws::new(Purpose::Evaluation, Task::Needle, 0, 0);
        let text = Haystack::Text("One. Two. Three.");
        let words = Words::built_in().unwrap();
        let mut filler = Filler::prose(text, words, &mut draws).unwrap();
        let read: Vec<String> = (0..6).filter_map(|_| filler.next(&mut draws)).collect();
        assert_eq!(read[..3], read[3..]);
        assert!("One. Two. Three. One. Two.".contains(&read[..3].join(" ")));
    }

    #[test]
    fn a_text_without_words_is_refused() {
        let mut draws = Draws::new(Purpose::Evaluation, Task::Needle, 0, 0);
        let words = Words::built_in().unwrap();
        assert!(Filler::prose(Haystack::Text(" \n"), words, &mut draws).is_err());
    }
}
