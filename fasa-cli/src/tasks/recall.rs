//! `recall`: who keeps what where, one place asked for.

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Many, so that names and objects recur in other company and only the pair decides.
const KEEPERS: (usize, usize) = (16, 32);

pub(super) fn facts(draws: &mut Draws, words: &Words<'_>, questions: usize) -> Facts {
    let count = draws.between(KEEPERS.0, KEEPERS.1).max(questions);
    let mut pairs = Distinct::new();
    let mut facts = Facts::default();
    for keeper in 0..count {
        let (name, object) = pairs.draw(|| (draws.pick(&words.people), draws.pick(&words.objects)));
        let place = draws.pick(&words.places);
        let fact = format!("{name} keeps the {object} in the {place}.");
        if keeper < questions {
            facts.asked.push(Asked::new(
                vec![fact],
                &format!("Where does {name} keep the {object}?"),
                &format!("the {place}"),
            ));
        } else {
            facts.others.push(vec![fact]);
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

    /// `(name, object)` to place.
    fn kept(context: &str) -> HashMap<(&str, &str), &str> {
        let mut all = HashMap::new();
        for (at, _) in context.match_indices(" keeps the ") {
            let name = context[..at].rsplit([' ', '\n']).next().unwrap();
            let rest = &context[at + " keeps the ".len()..];
            let (object, rest) = rest.split_once(" in the ").unwrap();
            let place = rest.split_once('.').unwrap().0;
            assert!(all.insert((name, object), place).is_none());
        }
        all
    }

    #[test]
    fn the_asked_pair_is_in_the_context_once() {
        for instance in instances(Task::Recall, 1000) {
            let (name, object) = question_of(&instance)
                .strip_prefix("Where does ")
                .and_then(|rest| rest.strip_suffix('?'))
                .and_then(|rest| rest.split_once(" keep the "))
                .unwrap();
            let all = kept(&instance.context);
            assert!((16..=32).contains(&all.len()));
            assert_eq!(format!(" the {}", all[&(name, object)]), instance.answer);
        }
    }
}
