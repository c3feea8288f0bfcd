//! `needle`: secret codes hidden in prose, one of them asked for.

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Several needles, so that finding *a* code is not enough.
const NEEDLES: (usize, usize) = (4, 8);

pub(super) fn facts(draws: &mut Draws, words: &Words<'_>, questions: usize) -> Facts {
    let count = draws.between(NEEDLES.0, NEEDLES.1).max(questions);
    let (mut names, mut codes) = (Distinct::new(), Distinct::new());
    let mut facts = Facts::default();
    for needle in 0..count {
        let name = names.draw(|| [draws.pick(&words.adjectives), draws.pick(&words.nouns)].join("-"));
        let code = codes.draw(|| draws.digits(5));
        let fact = format!("The secret code of {name} is {code}.");
        if needle < questions {
            facts.asked.push(Asked::new(vec![fact], &format!("What is the secret code of {name}?"), &code));
        } else {
            facts.others.push(vec![fact]);
        }
    }
    facts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use crate::tasks::test_support::{instances, question_of};
    use crate::tasks::{Instance, Task};

    fn needles(context: &str) -> Vec<(&str, &str)> {
        context
            .split("The secret code of ")
            .skip(1)
            .map(|rest| rest.split_once(" is ").unwrap())
            .map(|(name, rest)| (name, &rest[..5]))
            .collect()
    }

    fn solve(instance: &Instance) -> String {
        let asked = question_of(instance).strip_prefix("What is the secret code of ").unwrap();
        let all = needles(&instance.context);
        let found: Vec<_> = all.iter().filter(|(name, _)| Some(*name) == asked.strip_suffix('?')).collect();
        assert_eq!(found.len(), 1);
        format!(" {}", found[0].1)
    }

    #[test]
    fn the_asked_code_is_in_the_context_once() {
        for instance in instances(Task::Needle, 1000) {
            assert_eq!(solve(&instance), instance.answer);
        }
    }

    #[test]
    fn several_distinct_needles_each_time() {
        for instance in instances(Task::Needle, 1000) {
            let all = needles(&instance.context);
            assert!((4..=8).contains(&all.len()));
            assert_eq!(all.iter().map(|n| n.0).collect::<HashSet<_>>().len(), all.len());
            assert_eq!(all.iter().map(|n| n.1).collect::<HashSet<_>>().len(), all.len());
        }
    }
}
