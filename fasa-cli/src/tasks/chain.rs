//! `chain`: variables that copy each other; the value lies at least one copy away from the asked name.

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Several chains, so that the only value in sight is not the answer.
const CHAINS: (usize, usize) = (3, 5);

/// Copies between the asked variable and the one that holds the value.
const COPIES: (usize, usize) = (1, 2);

pub(super) fn facts(draws: &mut Draws, words: &Words<'_>, questions: usize) -> Facts {
    let count = draws.between(CHAINS.0, CHAINS.1).max(questions);
    let (mut names, mut values) = (Distinct::new(), Distinct::new());
    let mut facts = Facts::default();
    for chain in 0..count {
        let mut fresh = |draws: &mut Draws| {
            names.draw(|| {
                let noun = draws.pick(&words.nouns).to_ascii_uppercase();
                noun + &draws.digits(2)
            })
        };
        let value = values.draw(|| draws.digits(5));
        let mut last = fresh(draws);
        // In the order in which they must be read: a copy never precedes what it copies.
        let mut steps = vec![format!("Variable {last} holds {value}.")];
        for _ in 0..draws.between(COPIES.0, COPIES.1) {
            let copy = fresh(draws);
            steps.push(format!("Variable {copy} copies {last}."));
            last = copy;
        }
        if chain < questions {
            facts.asked.push(Asked::new(steps, &format!("What does variable {last} hold?"), &value));
        } else {
            facts.others.push(steps);
        }
    }
    facts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use crate::tasks::Task;
    use crate::tasks::test_support::{instances, question_of};

    /// Runs the statements in reading order. Panics where a copy comes before its original or a name comes twice.
    fn values(context: &str) -> (HashMap<&str, &str>, usize) {
        let mut known = HashMap::new();
        let mut held = 0;
        for statement in context.split("Variable ").skip(1) {
            let statement = statement.split_once('.').unwrap().0;
            let words: Vec<&str> = statement.split(' ').collect();
            let value = match words[1] {
                "holds" => {
                    held += 1;
                    words[2]
                }
                "copies" => known[words[2]],
                other => panic!("{other}"),
            };
            assert!(known.insert(words[0], value).is_none());
        }
        (known, held)
    }

    #[test]
    fn following_the_copies_gives_the_answer() {
        for instance in instances(Task::Chain, 1000) {
            let asked = question_of(&instance)
                .strip_prefix("What does variable ")
                .and_then(|rest| rest.strip_suffix(" hold?"))
                .unwrap();
            let (known, held) = values(&instance.context);
            assert!((3..=5).contains(&held));
            assert_eq!(format!(" {}", known[asked]), instance.answer);
        }
    }

    #[test]
    fn the_asked_variable_holds_nothing_itself() {
        for instance in instances(Task::Chain, 1000) {
            let asked = question_of(&instance).split(' ').nth(3).unwrap();
            assert!(!instance.context.contains(&format!("Variable {asked} holds")));
            assert!(instance.context.contains(&format!("Variable {asked} copies")));
        }
    }
}
