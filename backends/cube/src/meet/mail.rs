//! Words that cubes leave for each other.

use super::{Layout, ROUNDS};
use cubecl::prelude::*;

/// How often a cube looks for a word before it gives up: a few seconds.
pub(crate) const PATIENCE: u32 = 4_000_000;

/// Where a cube's list has its words.
#[derive(CubeType)]
pub(crate) struct Boxes {
    /// The state.
    pub state: usize,
    /// The state's word when the launch began: bit 0 names the mailbox, the rest how many histograms the one before used.
    pub begun: u32,
    /// The mailbox of this launch.
    pub now: usize,
    /// The mailbox that is emptied.
    pub next: usize,
    /// Whether a unit of the cube gave up.
    pub lost: Shared<[Atomic<u32>]>,
}

/// Asks which mailbox is to be used.
#[cube]
pub(crate) fn open(mail: &mut [Atomic<u32>], list: usize, #[comptime] layout: Layout) -> Boxes {
    let lost = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let state = list * comptime!(layout.of_list());
    let begun = mail[state].load();
    let (first, second) = (state + 2, state + 2 + comptime!(layout.words()));
    let odd = begun % 2 == 1;
    if UNIT_POS == 0 {
        lost[0usize].store(mail[state + 1].load());
    }
    Boxes { state, begun, now: select(odd, second, first), next: select(odd, first, second), lost }
}

/// Empties this cube's share of the other mailbox.
#[cube]
pub(crate) fn sweep(
    mail: &mut [Atomic<u32>],
    boxes: &Boxes,
    cube: usize,
    #[comptime] units: u32,
    #[comptime] layout: Layout,
) {
    let cubes = comptime!(layout.cubes);
    wipe(mail, boxes.next + cube * comptime!(layout.told()), comptime!(layout.told()), units);
    let used = min((boxes.begun / 2) as usize, ROUNDS) * comptime!(layout.bins);
    let share = (used + cubes - 1) / cubes;
    let from = min(cube * share, used);
    wipe(mail, boxes.next + comptime!(layout.bins_at()) + from, min(share, used - from), units);
    let ties = comptime!((1 + 2 * layout.ties).div_ceil(layout.cubes));
    let from = min(cube * ties, comptime!(1 + 2 * layout.ties));
    let left = comptime!(1 + 2 * layout.ties) - from;
    wipe(mail, boxes.next + comptime!(layout.ties_at()) + from, min(ties, left), units);
    wipe(mail, boxes.next + comptime!(layout.counts_at()) + cube, 1usize, units);
    let part = comptime!(layout.part());
    wipe(mail, boxes.next + comptime!(layout.parts_at()) + cube * part, part, units);
}

#[cube]
fn wipe(mail: &mut [Atomic<u32>], from: usize, count: usize, #[comptime] units: u32) {
    let mut i = UNIT_POS as usize;
    while i < count {
        mail[from + i].store(0u32);
        i += comptime!(units as usize);
    }
}

/// A word that another cube leaves. 0 if it never comes. Units of a plane leave the loop one by one, and a plane's exchange counts
/// those that are there: the whole cube has to wait (`sync_cube`) before planes exchange what they took; a wait of the plane was
/// not enough on CUDA.
#[cube]
pub(crate) fn take(mail: &mut [Atomic<u32>], at: usize, lost: &Shared<[Atomic<u32>]>) -> u32 {
    let mut word = 0u32.runtime();
    let mut tries = 0u32.runtime();
    // The only load of this word: of two, the compiler takes the second for the first.
    while word == 0 && tries < PATIENCE {
        word = mail[at].load();
        tries += 1u32;
    }
    if word == 0 {
        lost[0usize].store(1u32);
    }
    word
}

/// The word that tells a number; never 0.
#[cube]
pub(crate) fn word_of(x: f32) -> u32 {
    !select(x == x, u32::reinterpret(x), 0x7fc0_0000u32)
}

/// The number that a word tells; no number if the word never came.
#[cube]
pub(crate) fn number_of(word: u32) -> f32 {
    f32::reinterpret(!word)
}

/// The next launch takes the other mailbox. To be called after a wait for all cubes of the list, by which time all have begun.
#[cube]
pub(crate) fn close(mail: &mut [Atomic<u32>], boxes: &Boxes, cube: usize, rounds: u32) {
    if UNIT_POS == 0 {
        if boxes.lost[0usize].load() != 0 {
            mail[boxes.state + 1].store(1u32);
        }
        if cube == 0 {
            mail[boxes.state].store((1u32 - boxes.begun % 2) + 2u32 * rounds);
        }
    }
}
