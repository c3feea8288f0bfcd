//! Filling a context to a length and putting the facts into it.

use anyhow::{Result, bail};

use super::depth::Depth;
use super::episode::Facts;
use super::haystack::Filler;
use super::rng::Draws;

/// A context ends with a line break of its own, before the one that opens a question.
///
/// The shipped models were trained that way: after a context without it, nano finds the first question seven nats less
/// likely. Answers come out the same; the question-decode protocol sees the difference.
const CONTEXT_END: &str = "\n";

/// What a context is fitted into.
pub(super) struct Frame<'a> {
    /// The text after the context that counts towards the length.
    pub(super) tail: &'a str,
    pub(super) target_tokens: usize,
    pub(super) depth: Depth,
    pub(super) count_tokens: &'a dyn Fn(&str) -> usize,
}

/// A finished context.
#[derive(Debug)]
pub(crate) struct LaidOut {
    pub(crate) context: String,
    /// Of the token that starts the sequence, the context and the tail.
    pub(crate) tokens: usize,
    /// Per question, how far into the context its first statement begins (0 to 1).
    pub(crate) depths: Vec<f64>,
}

/// A sentence or line with its tokens, the separator before it included.
struct Piece {
    text: String,
    tokens: usize,
}

fn tokens<'p>(pieces: impl IntoIterator<Item = &'p Piece>) -> usize {
    pieces.into_iter().map(|piece| piece.tokens).sum()
}

/// How often a context that came out too short is filled up again. Only tokenizers that count a sentence differently
/// alone and in its place need it at all, and each round leaves a small part of the gap.
const MOST_REFILLS: usize = 4;

/// Each piece is tokenized once; the whole text only to check the sum, and again after a correction.
pub(super) fn lay_out(facts: &Facts, source: &mut Filler<'_>, frame: &Frame<'_>, draws: &mut Draws) -> Result<LaidOut> {
    let separator = source.separator();
    let measured = |text: &str| Piece {
        text: text.to_owned(),
        // At least one, so that filling ends whatever the counter says.
        tokens: (frame.count_tokens)(&format!("{separator}{text}")).max(1),
    };
    let group = |statements: &Vec<String>| statements.iter().map(|s| measured(s)).collect();
    let asked: Vec<Vec<Piece>> = (facts.asked.iter().map(|a| &a.statements)).map(group).collect();
    let mut others: Vec<Vec<Piece>> = facts.others.iter().map(group).collect();

    let fixed = 1 + (frame.count_tokens)(&format!("{CONTEXT_END}{}", frame.tail));
    let needed = fixed + tokens(asked.iter().flatten());
    let Some(mut room) = frame.target_tokens.checked_sub(needed) else {
        bail!(
            "{} tokens are too few: the question and the facts that answer it alone take {needed}",
            frame.target_tokens
        );
    };
    // A short context keeps fewer facts rather than no prose between them.
    while tokens(others.iter().flatten()) > room / 2 {
        others.pop();
    }
    room -= tokens(others.iter().flatten());

    let mut filler: Vec<Piece> = Vec::new();
    let mut next = source.next(draws).as_deref().map(measured);
    let mut refills = 0;
    loop {
        while let Some(piece) = next.take_if(|piece| piece.tokens <= room) {
            room -= piece.tokens;
            filler.push(piece);
            next = source.next(draws).as_deref().map(measured);
        }
        // From a copy of the generator: a refill must not move what was placed before.
        let (order, depths) = place(&filler, &others, &asked, frame.depth, &mut draws.clone());
        let mut context = order.join(separator);
        context.push_str(CONTEXT_END);
        let whole = 1 + (frame.count_tokens)(&format!("{context}{}", frame.tail));
        if let Some(over) = whole.checked_sub(frame.target_tokens + 1) {
            let mut freed = 0;
            while freed <= over {
                let Some(dropped) = filler.pop() else {
                    bail!("{} tokens are too few for this task: {whole} are needed", frame.target_tokens);
                };
                freed += dropped.tokens;
            }
            room = 0;
            continue;
        }
        room = frame.target_tokens - whole;
        let fits = next.as_ref().is_some_and(|piece| piece.tokens <= room);
        if !fits || refills == MOST_REFILLS {
            return Ok(LaidOut { context, tokens: whole, depths });
        }
        refills += 1;
    }
}

/// Filler in its order, facts in the gaps, and how deep the first statement of each asked group begins.
fn place<'p>(
    filler: &'p [Piece],
    others: &'p [Vec<Piece>],
    asked: &'p [Vec<Piece>],
    depth: Depth,
    draws: &mut Draws,
) -> (Vec<&'p str>, Vec<f64>) {
    let base = scatter(filler, others, draws);
    let total = tokens(base.iter().copied()) + tokens(asked.iter().flatten());
    let (low, high) = depth.in_tokens(total);

    // Drawn together and sorted: whatever is inserted later lies deeper and moves nothing that was placed.
    let mut wishes = Vec::new();
    for (question, statements) in asked.iter().enumerate() {
        let mut offsets: Vec<usize> =
            statements.iter().map(|piece| draws.between(low, high.saturating_sub(piece.tokens))).collect();
        offsets.sort_unstable();
        for (step, (piece, offset)) in statements.iter().zip(offsets).enumerate() {
            wishes.push((offset, question, step, piece));
        }
    }
    wishes.sort_unstable_by_key(|&(offset, question, step, _)| (offset, question, step));

    let mut order = Vec::with_capacity(base.len() + wishes.len());
    let mut depths = vec![0.0; asked.len()];
    let (mut at, mut start) = (0, 0);
    for (offset, question, step, piece) in wishes {
        let (ahead, begin) = nearest_boundary(&base[at..], start, offset, low..high, piece.tokens);
        order.extend(base[at..at + ahead].iter().map(|piece| piece.text.as_str()));
        order.push(piece.text.as_str());
        if step == 0 {
            depths[question] = begin as f64 / total.max(1) as f64;
        }
        at += ahead;
        start = begin + piece.tokens;
    }
    order.extend(base[at..].iter().map(|piece| piece.text.as_str()));
    (order, depths)
}

/// The facts nobody asks for, each in a random gap of the filler.
fn scatter<'p>(filler: &'p [Piece], others: &'p [Vec<Piece>], draws: &mut Draws) -> Vec<&'p Piece> {
    let mut placed = Vec::new();
    for statements in others {
        let mut gaps: Vec<usize> = (statements.iter()).map(|_| draws.between(0, filler.len())).collect();
        gaps.sort_unstable();
        placed.extend(gaps.into_iter().zip(statements));
    }
    // Stable: statements of one group that share a gap stay in order.
    placed.sort_by_key(|&(gap, _)| gap);

    let mut placed = placed.into_iter().peekable();
    let mut base = Vec::new();
    for gap in 0..=filler.len() {
        while let Some((_, piece)) = placed.next_if(|&(wanted, _)| wanted == gap) {
            base.push(piece);
        }
        base.extend(filler.get(gap));
    }
    base
}

/// How many of `rest`, which begins at token `start`, to let pass before a piece that wants to begin at `offset`, and
/// where it then begins. Boundaries that keep the piece inside `range` come first, then the nearest.
fn nearest_boundary(
    rest: &[&Piece],
    start: usize,
    offset: usize,
    range: std::ops::Range<usize>,
    piece_tokens: usize,
) -> (usize, usize) {
    let cost = |begin: usize| {
        let outside = begin < range.start || begin + piece_tokens > range.end;
        (outside, begin.abs_diff(offset))
    };
    let mut best = (0, start);
    let mut begin = start;
    for (passed, piece) in rest.iter().enumerate() {
        begin += piece.tokens;
        if cost(begin) < cost(best.1) {
            best = (passed + 1, begin);
        }
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::rng::Purpose;
    use crate::tasks::test_support::{count, request};
    use crate::tasks::{Task, generate};

    #[test]
    fn never_over_and_near_for_any_counter() {
        // A counter that adds a token at every call, as SentencePiece does with its leading space, one that sees
        // longer texts cheaper, and one that sees them dearer.
        let counters: [&dyn Fn(&str) -> usize; 4] =
            [&|text| count(text), &|text| count(text) + 1, &|text| count(text) - text.len() / 200, &|text| {
                count(text) + text.len() / 200
            }];
        for task in Task::ALL {
            for (target, counter) in [300, 777, 3000].into_iter().zip(counters.iter().cycle()) {
                for index in 0..5 {
                    let instance = generate(&request(task, target, index), counter).unwrap();
                    let tokens = 1 + counter(&instance.prompt());
                    assert_eq!(tokens, instance.prompt_tokens);
                    assert!(tokens <= target, "{task}: {tokens} > {target}");
                    assert!(tokens + 25 > target, "{task}: {tokens} << {target}");
                }
            }
        }
    }

    #[test]
    fn each_counter_meets_each_length() {
        let counters: [&dyn Fn(&str) -> usize; 3] =
            [&|text| count(text) + 1, &|text| count(text) - text.len() / 200, &|text| count(text) + text.len() / 200];
        for counter in counters {
            let instance = generate(&request(Task::Chain, 6000, 1), counter).unwrap();
            assert!((5950..=6000).contains(&instance.prompt_tokens));
        }
    }

    #[test]
    fn text_is_tokenized_a_bounded_number_of_times() {
        let seen = std::cell::Cell::new(0);
        let counter = |text: &str| {
            seen.set(seen.get() + text.len());
            count(text)
        };
        let instance = generate(&request(Task::Needle, 5000, 0), &counter).unwrap();
        assert!(seen.get() < 3 * instance.context.len());
    }

    #[test]
    fn a_counter_that_sees_nothing_does_not_hang() {
        assert!(generate(&request(Task::Kv, 500, 0), &|_| 0).is_ok());
    }

    #[test]
    fn too_short_is_an_error() {
        for task in Task::ALL {
            let error = generate(&request(task, 20, 0), &count).unwrap_err();
            assert!(error.to_string().contains("20 tokens are too few"), "{error}");
        }
    }

    #[test]
    fn boundaries_inside_the_range_come_first() {
        let pieces: Vec<Piece> = (0..4).map(|_| Piece { text: String::new(), tokens: 10 }).collect();
        let rest: Vec<&Piece> = pieces.iter().collect();
        assert_eq!(nearest_boundary(&rest, 0, 12, 0..50, 5), (1, 10));
        assert_eq!(nearest_boundary(&rest, 0, 12, 11..50, 5), (2, 20));
        assert_eq!(nearest_boundary(&rest, 0, 18, 0..24, 5), (1, 10));
        // No boundary fits: the nearest.
        assert_eq!(nearest_boundary(&rest, 0, 13, 12..18, 5), (1, 10));
        assert_eq!(nearest_boundary(&[], 7, 13, 0..50, 5), (0, 7));
    }

    #[test]
    fn groups_keep_their_order_in_shared_gaps() {
        let piece = |text: &str| Piece { text: text.to_owned(), tokens: 1 };
        let group = || ["a", "b", "c"].map(piece).into_iter().collect::<Vec<_>>();
        let (others, asked) = ([group(), group()], [group(), group()]);
        let filler = [piece("x")];
        for index in 0..50 {
            let mut draws = Draws::new(Purpose::Evaluation, Task::Chain, 0, index);
            let (order, _) = place(&filler, &others, &asked, Depth::ANYWHERE, &mut draws);
            assert_eq!(order.len(), 13);
            let first_of = |text| order.iter().position(|&t| t == text).unwrap();
            let last_of = |text| order.iter().rposition(|&t| t == text).unwrap();
            assert!(first_of("a") < first_of("b") && first_of("b") < first_of("c"));
            assert!(last_of("a") < last_of("b") && last_of("b") < last_of("c"));
        }
    }
}
