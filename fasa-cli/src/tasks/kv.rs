//! `kv`: lines of keys and values and nothing else, one value asked for.

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};

/// Keys and values are numbers of six digits.
const DIGITS: u32 = 6;

/// A tenth of all six-digit numbers stays unused, so that drawing a new one never takes long.
const MOST_NUMBERS: usize = 900_000;

/// Lines in which no number comes twice, neither as a key nor as a value: any six digits point to one place.
#[derive(Debug)]
pub(super) struct Lines(Distinct<String>);

impl Lines {
    pub(super) fn new() -> Self {
        Self(Distinct::new())
    }

    fn pair(&mut self, draws: &mut Draws) -> Option<(String, String)> {
        if self.0.len() >= MOST_NUMBERS {
            return None;
        }
        let [key, value] = [0; 2].map(|_| self.0.draw(|| draws.digits(DIGITS)));
        Some((key, value))
    }

    /// One more line, or nothing after some hundred thousands of them.
    pub(super) fn next(&mut self, draws: &mut Draws) -> Option<String> {
        let (key, value) = self.pair(draws)?;
        Some(format!("{key}: {value}"))
    }
}

/// Only the asked lines: all others are what the context is filled up with.
pub(super) fn facts(draws: &mut Draws, lines: &mut Lines, questions: usize) -> Facts {
    let mut facts = Facts::default();
    for (key, value) in (0..questions).filter_map(|_| lines.pair(draws)) {
        facts.asked.push(Asked::new(vec![format!("{key}: {value}")], &format!("What is the value of {key}?"), &value));
    }
    facts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use crate::tasks::test_support::{instances, question_of};
    use crate::tasks::{Instance, Task};

    fn pairs(instance: &Instance) -> HashMap<&str, &str> {
        let mut all = HashMap::new();
        for line in instance.context.lines() {
            let (key, value) = line.split_once(": ").unwrap();
            assert!(key.len() == 6 && value.len() == 6, "{line}");
            assert!(key.bytes().chain(value.bytes()).all(|b| b.is_ascii_digit()));
            assert!(all.insert(key, value).is_none(), "{key} twice");
        }
        all
    }

    #[test]
    fn keys_are_unique_and_the_asked_one_has_its_value() {
        for instance in instances(Task::Kv, 1000) {
            let asked = question_of(&instance).strip_prefix("What is the value of ").unwrap().trim_end_matches('?');
            let all = pairs(&instance);
            assert!(all.len() > 50);
            assert_eq!(format!(" {}", all[asked]), instance.answer);
        }
    }

    #[test]
    fn no_number_stands_in_two_places() {
        for instance in instances(Task::Kv, 4000) {
            let all = pairs(&instance);
            assert!(all.values().all(|value| !all.contains_key(value)));
        }
    }
}
