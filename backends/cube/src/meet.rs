//! Cubes of one launch that tell each other what they found, so that a whole decode step is one launch and each list of tokens
//! is chosen by several processors.
//!
//! A cube leaves words in a mailbox and others read them again and again until they are there. Nothing else is exchanged, so
//! no fence is needed: an empty place holds 0, what is told never is 0, and counts of a histogram are complete when their sum
//! is the number of all tokens. Each list has two mailboxes: a launch uses one and empties the other, which the launch before
//! it used; the last word says which is next.
//!
//! A cube that waits needs the others to run. [`Traits::together`](crate::Traits) says how many cubes surely run at once: as
//! many as there are processors where waiting is safe at all, since a cube of [`UNITS`] units fits on each (the compiler is
//! told the number of units, and keeps their registers within a processor's). Streams of two threads could each have half of
//! the device and wait for the other half for ever, so one thread of a process at a time may launch cubes that meet (`claim`);
//! others take five launches a step.
//!
//! A cube gives up waiting after a few seconds; then the result is no number, and so are those of later launches.

pub(crate) mod bar;
pub(crate) mod choose;
pub(crate) mod finish;
pub(crate) mod mail;
mod score;
pub(crate) mod whole;

use crate::device::{Gpu, buffer};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl_environment::stream::StreamId;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::ThreadId;

/// Units of a cube that meets others.
pub(crate) const UNITS: u32 = 512;

/// Histograms that a search may need: the first leaves less than 31 bits of a key, and each other one takes 9 or 11 of them;
/// then 31 bits of positions.
pub(crate) const ROUNDS: usize = 9;

/// Numbers of a row of partial results at most.
pub(crate) const DIM: usize = 128;

/// Places in a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Cubes of a list.
    pub cubes: usize,
    /// Query heads of a list.
    pub group: usize,
    /// Counts of a histogram.
    pub bins: usize,
    /// Tokens that are ranked against each other at most.
    pub ties: usize,
}

impl Layout {
    /// For `lists` lists of `group` query heads, or `None` where too few cubes run at once.
    pub fn new(gpu: &Gpu, lists: usize, group: usize) -> Option<Self> {
        let cubes = gpu.traits.together as usize / lists.max(1);
        let roomy = gpu.traits.shared_memory >= 160 * 1024;
        let (bins, ties) = if roomy { (2048, 1024) } else { (512, 64) };
        (cubes > 0 && cubes >= gpu.traits.meeting as usize).then_some(Self { cubes, group, bins, ties })
    }

    /// Tokens of a cube of `len`.
    pub const fn tokens(self, len: usize) -> usize {
        len.div_ceil(32).div_ceil(self.cubes) * 32
    }

    /// Words that each cube tells about its scores: two per query head.
    pub const fn told(self) -> usize {
        2 * self.group
    }

    pub const fn bins_at(self) -> usize {
        self.cubes * self.told()
    }

    /// Ties told so far, then their keys and places.
    pub const fn ties_at(self) -> usize {
        self.bins_at() + ROUNDS * self.bins
    }

    /// Tokens that each cube has taken.
    pub const fn counts_at(self) -> usize {
        self.ties_at() + 1 + 2 * self.ties
    }

    /// Partial results of each cube.
    pub const fn parts_at(self) -> usize {
        self.counts_at() + self.cubes
    }

    /// Numbers of a cube's partial results, the largest scores and sums of weights behind them.
    pub const fn part(self) -> usize {
        self.group * (DIM + 2)
    }

    /// Words of a mailbox.
    pub const fn words(self) -> usize {
        self.parts_at() + self.cubes * self.part()
    }

    /// Words of a list: the state, whether a cube gave up, and two mailboxes.
    pub const fn of_list(self) -> usize {
        2 + 2 * self.words()
    }
}

/// Mailboxes of some lists.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub words: Handle,
    pub layout: Layout,
}

impl Mail {
    /// Empty mailboxes. One launch.
    pub fn empty(gpu: &Gpu, layout: Layout, lists: usize) -> Self {
        let count = lists * layout.of_list();
        let words = gpu.words(count);
        // SAFETY: the buffer has as many words, and no other is written.
        unsafe {
            empty_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(count.div_ceil(256) as u32, 1, 1),
                CubeDim::new_1d(256),
                buffer(&words, count),
                count as u32,
            );
        }
        Self { words, layout }
    }
}

#[cube(launch_unchecked)]
fn empty_kernel(words: &mut [u32], count: u32) {
    if ABSOLUTE_POS < count as usize {
        words[ABSOLUTE_POS] = 0u32;
    }
}

/// The thread whose cubes may wait for each other, and its stream.
struct Holder {
    thread: ThreadId,
    alive: Weak<()>,
    stream: StreamId,
}

static HOLDER: Mutex<Option<Holder>> = Mutex::new(None);

thread_local! {
    /// Lives as long as the thread.
    static ALIVE: Arc<()> = Arc::new(());
}

/// Whether this thread's launches may meet: those of the first thread that asks may. When it has ended, and its stream is done,
/// another takes its place.
pub(crate) fn claim(gpu: &Gpu) -> bool {
    claim_after(|stream| {
        let mut client = gpu.client.clone();
        // SAFETY: nothing is launched there, only waited for.
        unsafe { client.set_stream(stream) };
        cubecl::future::block_on(client.sync()).is_ok()
    })
}

/// As [`claim`], where `wait` says whether a stream is done.
fn claim_after(wait: impl FnOnce(StreamId) -> bool) -> bool {
    let mut holder = HOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = std::thread::current().id();
    let free = match holder.as_ref() {
        Some(held) if held.thread == thread => return true,
        Some(held) => held.alive.strong_count() == 0 && wait(held.stream),
        None => true,
    };
    if free {
        *holder = Some(Holder { thread, alive: ALIVE.with(Arc::downgrade), stream: StreamId::current() });
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_may_meet() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let first = std::thread::spawn(move || {
            let _ = tell.send(claim_after(|_| true) && claim_after(|_| false));
            let _ = wait.recv();
        });
        assert_eq!(told.recv(), Ok(true));
        let other = |done: bool| std::thread::spawn(move || claim_after(|_| done)).join();
        assert!(matches!(other(true), Ok(false)));
        drop(end);
        assert!(first.join().is_ok());
        // Its stream is not done, then it is.
        assert!(matches!(other(false), Ok(false)));
        assert!(matches!(other(true), Ok(true)));
    }

    #[test]
    fn places_do_not_overlap() {
        let layout = Layout { cubes: 3, group: 4, bins: 512, ties: 64 };
        let order = [0, layout.bins_at(), layout.ties_at(), layout.counts_at(), layout.parts_at(), layout.words()];
        assert!(order.is_sorted() && layout.bins_at() == 24 && layout.of_list() == 2 + 2 * layout.words());
        assert_eq!(layout.tokens(97), 64);
    }
}
