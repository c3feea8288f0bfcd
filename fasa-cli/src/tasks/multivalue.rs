//! `multivalue`: one name with several codes in prose, all of them asked for (RULER's multi-value retrieval).

use super::episode::{Asked, Facts};
use super::rng::{Distinct, Draws};
use super::words::Words;

/// Codes of the asked name.
const VALUES: usize = 4;

/// Other names, with one code each.
const OTHERS: (usize, usize) = (3, 5);

pub(super) fn facts(draws: &mut Draws, words: &Words<'_>, questions: usize) -> Facts {
    let count = draws.between(OTHERS.0, OTHERS.1);
    let (mut names, mut codes) = (Distinct::new(), Distinct::new());
    let mut fresh = |draws: &mut Draws, values: usize| {
        let name = names.draw(|| [draws.pick(&words.adjectives), draws.pick(&words.nouns)].join("-"));
        let codes: Vec<String> = (0..values).map(|_| codes.draw(|| draws.digits(5))).collect();
        (name, codes)
    };
    let statement = |name: &str, code: &String| format!("The secret code of {name} is {code}.");
    let mut facts = Facts::default();
    for _ in 0..questions {
        let (name, codes) = fresh(draws, VALUES);
        // They come in this order, so the answer names them in the order of the text.
        let statements = codes.iter().map(|code| statement(&name, code)).collect();
        let question = format!("What are all the secret codes of {name}?");
        facts.asked.push(Asked::new(statements, &question, &codes.join(", ")));
    }
    for _ in 0..count {
        let (name, codes) = fresh(draws, 1);
        facts.others.push(vec![statement(&name, &codes[0])]);
    }
    facts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::tasks::Task;
    use crate::tasks::test_support::{instances, question_of};

    #[test]
    fn the_answer_names_every_code_in_the_order_of_the_text() {
        for instance in instances(Task::Multivalue, 1000) {
            let asked = question_of(&instance).strip_prefix("What are all the secret codes of ").unwrap();
            let fact = format!("The secret code of {} is ", asked.trim_end_matches('?'));
            let found: Vec<&str> = instance.context.split(&fact).skip(1).map(|rest| &rest[..5]).collect();
            assert_eq!(found.len(), super::VALUES);
            assert_eq!(instance.answer, format!(" {}", found.join(", ")));
            let others = instance.context.matches("The secret code of ").count() - found.len();
            assert!((3..=5).contains(&others));
        }
    }
}
