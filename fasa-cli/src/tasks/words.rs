//! The word lists that facts and filler are made of.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::rng::Draws;

/// Borrowed from the text compiled into the binary.
#[derive(Debug, Deserialize)]
pub(super) struct Words<'a> {
    #[serde(borrow)]
    pub(super) adjectives: Vec<&'a str>,
    pub(super) nouns: Vec<&'a str>,
    pub(super) people: Vec<&'a str>,
    pub(super) objects: Vec<&'a str>,
    pub(super) places: Vec<&'a str>,
    filler: Vec<&'a str>,
}

impl Words<'static> {
    pub(super) fn built_in() -> Result<Self> {
        let words: Self =
            serde_json::from_str(include_str!("words.json")).context("the built-in word lists are not valid JSON")?;
        let lists = [&words.adjectives, &words.nouns, &words.people, &words.objects, &words.places, &words.filler];
        ensure!(lists.iter().all(|list| !list.is_empty()), "one of the built-in word lists is empty");
        Ok(words)
    }
}

impl Words<'_> {
    /// One sentence of filler. The templates are filled as they stand ("A amber anchor"): the shipped models were
    /// trained on that wording.
    pub(super) fn sentence(&self, draws: &mut Draws) -> String {
        let template = draws.pick(&self.filler);
        // All four are drawn whatever the template uses, so that every sentence takes the same number of draws.
        let [a, a2] = [0; 2].map(|_| draws.pick(&self.adjectives));
        let [n, n2] = [0; 2].map(|_| draws.pick(&self.nouns));
        let mut sentence = template.replace("{a}", a).replace("{n}", n).replace("{a2}", a2).replace("{n2}", n2);
        if let Some(first) = sentence.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        sentence.push('.');
        sentence
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tasks::{Task, rng::Purpose};

    #[test]
    fn lists_hold_each_word_once() {
        let words = Words::built_in().unwrap();
        for list in [&words.adjectives, &words.nouns, &words.people, &words.objects, &words.places, &words.filler] {
            let distinct: HashSet<_> = list.iter().collect();
            assert_eq!(distinct.len(), list.len());
        }
    }

    #[test]
    fn sentences_are_whole_and_capitalised() {
        let words = Words::built_in().unwrap();
        let mut draws = Draws::new(Purpose::Evaluation, Task::Needle, 0, 0);
        for _ in 0..500 {
            let sentence = words.sentence(&mut draws);
            assert!(sentence.starts_with(|c: char| c.is_ascii_uppercase()), "{sentence}");
            assert!(sentence.ends_with('.') && sentence.matches('.').count() == 1);
            assert!(!sentence.contains(['{', '}']) && !sentence.contains("  "));
        }
    }
}
