//! Similarity of a line of code, by `difflib`'s matching blocks.

use std::collections::HashMap;

/// From this length on `difflib` leaves out what comes too often.
const POPULAR_FROM: usize = 200;

/// Similarity of the first written line that is neither a comment nor a fence, in whole percents, 0 to 1.
pub fn similarity(prediction: &str, truth: &str) -> f64 {
    let lines = prediction.trim_start_matches('\n').split('\n');
    let mut code = lines.filter(|line| !line.contains(['`', '#']) && !line.contains("//"));
    let line = code.next().unwrap_or_default();
    if line == truth {
        return 1.0;
    }
    if line.is_empty() || truth.is_empty() {
        return 0.0;
    }
    let (a, b): (Vec<char>, Vec<char>) = (line.chars().collect(), truth.chars().collect());
    let ratio = 2.0 * matches(&a, &b) as f64 / (a.len() + b.len()) as f64;
    (100.0 * ratio).round_ties_even() / 100.0
}

/// Characters in the blocks that `difflib.SequenceMatcher` finds: the longest, then those left and right of it.
fn matches(a: &[char], b: &[char]) -> usize {
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    for (j, c) in b.iter().enumerate() {
        places.entry(*c).or_default().push(j);
    }
    if b.len() >= POPULAR_FROM {
        let most = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    let (mut found, mut open) = (0, vec![(0..a.len(), 0..b.len())]);
    while let Some((in_a, in_b)) = open.pop() {
        let (i, j, size) = longest(a, b, &places, in_a.clone(), in_b.clone());
        if size > 0 {
            found += size;
            open.push((in_a.start..i, in_b.start..j));
            open.push((i + size..in_a.end, j + size..in_b.end));
        }
    }
    found
}

/// The longest common block; of several the first in `a`, then in `b`. Starts at a character that is not left out and grows
/// over those that are.
fn longest(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    in_a: std::ops::Range<usize>,
    in_b: std::ops::Range<usize>,
) -> (usize, usize, usize) {
    let (mut i, mut j, mut size) = (in_a.start, in_b.start, 0);
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for at in in_a.clone() {
        let mut next = HashMap::new();
        for &place in places.get(&a[at]).map_or(&[][..], Vec::as_slice).iter().filter(|p| in_b.contains(p)) {
            let length = place.checked_sub(1).and_then(|p| ending.get(&p)).copied().unwrap_or(0) + 1;
            next.insert(place, length);
            if length > size {
                (i, j, size) = (at + 1 - length, place + 1 - length, length);
            }
        }
        ending = next;
    }
    while i > in_a.start && j > in_b.start && a[i - 1] == b[j - 1] {
        (i, j, size) = (i - 1, j - 1, size + 1);
    }
    while i + size < in_a.end && j + size < in_b.end && a[i + size] == b[j + size] {
        size += 1;
    }
    (i, j, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Blocks: "bcd". 2 * 3 of 8.
        assert_eq!(similarity("abcd", "bcde"), 0.75);
        // "ab", then "cd" right of it: 2 * 4 of 12, rounded.
        assert_eq!(similarity("qabxcd", "abycdf"), 0.67);
        assert_eq!(similarity("```python\n# no\nfoo(bar)\nbaz", "foo(bar)"), 1.0);
        assert_eq!(similarity("// only", "x"), 0.0);
        // 2 * 1 of 16 is 12.5 percent, which Python rounds to the even 12.
        assert_eq!(similarity("abcdefgh", "aijklmno"), 0.12);
    }
}
