//! The code in `docs/embedding.md` is the code of the examples: every block stands, line by line, in the file that was
//! named before it.

use std::path::Path;

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[test]
fn code_blocks_stand_in_their_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/embedding.md")).expect("the page");
    let (mut file, mut blocks) = (None, 0);
    let mut rest = page.as_str();
    while let Some((before, after)) = rest.split_once("```rust\n") {
        let (block, after) = after.split_once("```").expect("the block ends");
        file = before
            .rmatch_indices("](../")
            .map(|(at, _)| &before[at + 5..])
            .next()
            .map(|link| link.split_once(')').expect("the link ends").0)
            .or(file);
        let name = file.expect("a file is named before its code");
        let source = std::fs::read_to_string(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (block_lines, source) = (lines(block), lines(&source));
        let found = source.windows(block_lines.len()).any(|window| window == block_lines);
        assert!(found, "{name} does not hold this block:\n{block}");
        (rest, blocks) = (after, blocks + 1);
    }
    assert!(blocks > 10, "{blocks} blocks");
}
