//! `tracking`: all variables that hold a value, directly or by copying (RULER's variable tracking).

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Copies of the asked value, one after the other.
const COPIES: usize = 3;

/// Other chains.
const OTHERS: (usize, usize) = (2, 4);

pub(super) fn facts(draws: &mut Draws, words: &Words<'_>, questions: usize) -> Facts {
    let count = draws.between(OTHERS.0, OTHERS.1);
    let (mut names, mut values) = (Distinct::new(), Distinct::new());
    let mut facts = Facts::default();
    for chain in 0..questions + count {
        let value = values.draw(|| draws.digits(5));
        let fresh = |names: &mut Distinct<String>, draws: &mut Draws| {
            names.draw(|| draws.pick(&words.nouns).to_ascii_uppercase() + &draws.digits(2))
        };
        let mut chained = vec![fresh(&mut names, draws)];
        // In the order in which they must be read: a copy never precedes what it copies.
        let mut steps = vec![format!("Variable {} holds {value}.", chained[0])];
        for copy in 0..COPIES {
            let next = fresh(&mut names, draws);
            steps.push(format!("Variable {next} copies {}.", chained[copy]));
            chained.push(next);
        }
        if chain < questions {
            facts.asked.push(Asked::new(steps, &format!("Which variables hold {value}?"), &chained.join(", ")));
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

    #[test]
    fn following_the_copies_gives_every_variable() {
        for instance in instances(Task::Tracking, 1000) {
            let value = question_of(&instance).strip_prefix("Which variables hold ").unwrap().trim_end_matches('?');
            let mut known: HashMap<&str, &str> = HashMap::new();
            let mut holding = Vec::new();
            for statement in instance.context.split("Variable ").skip(1) {
                let words: Vec<&str> = statement.split_once('.').unwrap().0.split(' ').collect();
                let held = if words[1] == "holds" { words[2] } else { known[words[2]] };
                assert!(known.insert(words[0], held).is_none());
                if held == value {
                    holding.push(words[0]);
                }
            }
            assert_eq!(holding.len(), super::COPIES + 1);
            assert_eq!(instance.answer, format!(" {}", holding.join(", ")));
        }
    }
}
