//! `multikey`: secret codes and nothing else, one of them asked for (RULER's multi-key retrieval, its haystack of needles).

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Sentences in which no name and no code comes twice.
pub(super) struct Needles {
    words: Words<'static>,
    names: Distinct<String>,
    codes: Distinct<String>,
}

impl Needles {
    pub(super) fn new(words: Words<'static>) -> Self {
        Self { words, names: Distinct::new(), codes: Distinct::new() }
    }

    fn pair(&mut self, draws: &mut Draws) -> Option<(String, String)> {
        // Half of all names stays unused, so that drawing a new one never takes long.
        let names = self.words.adjectives.len() * self.words.nouns.len();
        if self.names.len() >= names / 2 {
            return None;
        }
        let (adjectives, nouns) = (&self.words.adjectives, &self.words.nouns);
        let name = self.names.draw(|| [draws.pick(adjectives), draws.pick(nouns)].join("-"));
        Some((name, self.codes.draw(|| draws.digits(5))))
    }

    /// One more sentence, or nothing after some thousands of them.
    pub(super) fn next(&mut self, draws: &mut Draws) -> Option<String> {
        let (name, code) = self.pair(draws)?;
        Some(format!("The secret code of {name} is {code}."))
    }
}

pub(super) fn facts(draws: &mut Draws, needles: &mut Needles, questions: usize) -> Facts {
    let mut facts = Facts::default();
    for (name, code) in (0..questions).filter_map(|_| needles.pair(draws)) {
        let fact = format!("The secret code of {name} is {code}.");
        facts.asked.push(Asked::new(vec![fact], &format!("What is the secret code of {name}?"), &code));
    }
    facts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::tasks::Task;
    use crate::tasks::test_support::{instances, question_of};

    #[test]
    fn every_sentence_is_a_needle_and_one_is_asked_for() {
        for instance in instances(Task::Multikey, 1000) {
            let asked =
                question_of(&instance).strip_prefix("What is the secret code of ").unwrap().trim_end_matches('?');
            let sentences: Vec<&str> = instance.context.trim_end().split_inclusive('.').collect();
            assert!(
                sentences.len() > 50 && sentences.iter().all(|s| s.trim_start().starts_with("The secret code of "))
            );
            let fact = format!("The secret code of {asked} is{}.", instance.answer);
            assert_eq!(instance.context.matches(&fact).count(), 1);
            assert_eq!(instance.context.matches(&format!(" {asked} ")).count(), 1);
        }
    }
}
