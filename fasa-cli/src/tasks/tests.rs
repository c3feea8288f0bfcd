//! What holds for every task. What only one task promises is tested beside it.

use fasa_burn::text::Tokenizer;

use super::test_support::{count, instances, request};
use super::*;

/// A change here makes every published figure incomparable with the next one.
#[test]
fn the_same_seed_gives_the_same_text_for_ever() {
    for (task, hash, start) in GOLDEN {
        let text = generate(&request(task, 400, 3), &count).unwrap().text();
        assert!(text.starts_with(start), "{text:?}");
        assert_eq!(fnv1a(&text), hash, "{task}: {:#x}", fnv1a(&text));
    }
}

const GOLDEN: [(Task, u64, &str); 4] = [
    (
        Task::Needle,
        0x891a_53d8_ed6f_82b9,
        "A daring arrow crossed the lily at noon. The secret code of green-violin is 47720. A swan",
    ),
    (Task::Kv, 0xb26a_3a36_a959_1920, "275013: 490960\n355567: 290635\n393663: 288678\n"),
    (
        Task::Chain,
        0xa675_df9a_8e30_5310,
        "A lively panther crossed the lake at noon. Variable COMPASS93 holds 49724. A wren",
    ),
    (
        Task::Recall,
        0xe527_ca6e_3ee9_0b18,
        "The wren and the canyon were painted maple. Jacob keeps the clock in the hangar. The",
    ),
];

/// Written out, since the standard library promises no hash that stays the same.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn seeds_and_indices_give_other_texts() {
    for task in Task::ALL {
        let base = request(task, 400, 0);
        let first = generate(&base, &count).unwrap();
        assert_eq!(first, generate(&base, &count).unwrap());
        let others = [Request { seed: 1, ..base }, Request { index: 1, ..base }];
        for other in others {
            assert_ne!(first, generate(&other, &count).unwrap());
        }
    }
}

#[test]
fn the_question_does_not_depend_on_the_length() {
    for task in Task::ALL {
        let [short, long] = [600, 4000].map(|target| instances(task, target));
        for (short, long) in short.iter().zip(&long) {
            assert_eq!((&short.question, &short.answer), (&long.question, &long.answer));
        }
    }
}

#[test]
fn parts_have_their_fixed_ends() {
    for task in Task::ALL {
        for instance in instances(task, 500) {
            assert!(instance.context.ends_with('\n') && !instance.context.ends_with("\n\n"));
            assert!(instance.question.starts_with("\nQuestion: "));
            assert!(instance.question.ends_with("?\nAnswer:"));
            assert!(instance.answer.starts_with(' ') && !instance.answer.ends_with('\n'));
            let gap = if task == Task::Kv { ": " } else { " " };
            assert!(!instance.context.contains("  ") && instance.context.contains(gap));
            assert_eq!(instance.text(), instance.prompt() + &instance.answer + "\n");
        }
    }
}

/// The asked fact in the context, by the words that only it has.
fn place_of(instance: &Instance, task: Task) -> (usize, usize) {
    let value = instance.answer.trim();
    let question = test_support::question_of(instance);
    let is_asked = |piece: &str| match task {
        Task::Recall => {
            let (name, object) = question
                .strip_prefix("Where does ")
                .and_then(|rest| rest.strip_suffix('?'))
                .and_then(|rest| rest.split_once(" keep the "))
                .unwrap();
            piece.contains(&format!("{name} keeps the {object} in the "))
        }
        _ => piece.contains(value),
    };
    let separator = if task == Task::Kv { "\n" } else { ". " };
    let mut start = 0;
    for piece in instance.context.split_inclusive(separator) {
        if is_asked(piece) {
            return (start, start + piece.trim_end().len());
        }
        start += piece.len();
    }
    panic!("no fact in {instance:?}")
}

#[test]
fn the_asked_fact_stays_in_its_depth_range() {
    for task in Task::SIMPLE {
        for (low, high) in [(0.0, 0.5), (0.4, 0.6), (0.9, 1.0), (0.0, 0.1)] {
            for index in 0..25 {
                let mut wanted = request(task, 3000, index);
                wanted.depth = Depth::new(low, high).unwrap();
                let instance = generate(&wanted, &count).unwrap();
                assert!((low..=high).contains(&instance.depth));
                let (begin, end) = place_of(&instance, task);
                let total = count(&instance.context) as f64;
                let begin = count(&instance.context[..begin]) as f64 / total;
                let end = count(&instance.context[..end]) as f64 / total;
                assert!((begin - instance.depth).abs() < 0.002, "{task} {begin}");
                assert!(begin > low - 0.002 && end < high + 0.002, "{task} {begin}");
            }
        }
    }
}

#[test]
fn the_whole_chain_stays_in_its_depth_range() {
    for index in 0..25 {
        let mut wanted = request(Task::Chain, 3000, index);
        wanted.depth = Depth::FIRST_HALF;
        let instance = generate(&wanted, &count).unwrap();
        let asked = instance.question.split(' ').nth(4).unwrap();
        let at = instance.context.find(&format!("{asked} copies")).unwrap();
        assert!(count(&instance.context[..at]) * 2 < count(&instance.context));
    }
}

#[test]
fn depths_cover_the_context_evenly() {
    for task in [Task::Needle, Task::Kv, Task::Recall] {
        let mut tenths = [0; 10];
        for index in 0..400 {
            let instance = generate(&request(task, 1000, index), &count).unwrap();
            tenths[(instance.depth * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (15..=70).contains(n)), "{task}: {tenths:?}");
    }
}

#[test]
fn a_given_text_is_the_prose() {
    let text = "It was late. The lamp had gone out! Nobody spoke.";
    let wanted = Request { haystack: Haystack::Text(text), ..Request::new(Task::Needle, 600) };
    let instance = generate(&wanted, &count).unwrap();
    let prose = sentences(&instance.context)
        .into_iter()
        .map(|sentence| sentence.join(" "))
        .filter(|sentence| !sentence.starts_with("The secret code of"));
    for sentence in prose {
        assert!(text.contains(&sentence), "{sentence}");
    }
}

#[test]
fn short_contexts_keep_the_asked_fact() {
    for task in Task::SIMPLE {
        for index in 0..20 {
            let instance = generate(&request(task, 130, index), &count).unwrap();
            place_of(&instance, task);
        }
    }
}

#[test]
fn names_are_read_and_written() {
    for task in Task::ALL {
        assert_eq!(task.to_string().parse::<Task>().unwrap(), task);
        assert_eq!(serde_json::to_string(&task).unwrap(), format!("\"{}\"", task.name()));
    }
    assert!("Needle".parse::<Task>().is_err());
}

/// With the tokenizer of the shipped models: parts encoded one by one give the tokens of the whole, and lengths are
/// exact.
#[test]
fn parts_are_tokenized_as_the_whole_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nano/tokenizer.json");
    let tokenizer = Tokenizer::read(path).unwrap();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    for task in Task::ALL {
        for (index, target) in [(0, 200), (1, 500), (2, 1200)] {
            let wanted = request(task, target, index);
            let instance = generate(&wanted, &|text| encode(text).len()).unwrap();
            let whole = encode(&instance.text());
            let prompt = encode(&instance.prompt());
            assert_eq!(prompt.len() + 1, instance.prompt_tokens);
            assert!((target - 20..=target).contains(&instance.prompt_tokens));

            let answer = [encode(&instance.answer), encode(ANSWER_END)].concat();
            assert_eq!([prompt, answer.clone()].concat(), whole);
            let apart = [encode(&instance.context), encode(&instance.question), answer];
            assert_eq!(apart.concat(), whole);
        }
    }
}
