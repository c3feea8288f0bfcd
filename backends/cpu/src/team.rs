//! Threads that stay awake through a decode step.
//!
//! A step is over in a millisecond or two and shares out some fifty small pieces of work. A thread pool puts threads
//! without work to sleep, and waking one takes as long as a small projection. [`awake`] keeps the other threads of rayon's
//! current pool spinning while its body runs, and `share` hands them work in well under a microsecond. Outside of
//! [`awake`], `share` is rayon's own loop. The threads are the pool's in both cases, so there are never too many.

use rayon::prelude::*;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Turns of a waiting loop before the core is offered to others: some tens of microseconds.
const SPINS: u32 = 1 << 13;

thread_local! {
    /// The team that the body on this thread shares its work with.
    static CURRENT: Cell<Option<NonNull<Team>>> = const { Cell::new(None) };
}

/// What a team works on: pieces `0..pieces` of `work`.
#[derive(Clone, Copy)]
struct Job {
    work: NonNull<dyn Fn(usize) + Sync>,
    pieces: usize,
}

/// Threads that wait for work, and the work.
struct Team {
    /// Odd while a job is open.
    epoch: AtomicUsize,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// Threads that may be reading `job`.
    inside: AtomicUsize,
    dismissed: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the thread that owns the team only, while no job is open and nobody is inside (`run`), and
// read only by threads that are counted in `inside` and have seen an open job after that (`serve`). What it points to is
// `Sync`.
unsafe impl Sync for Team {}

impl Team {
    fn new() -> Self {
        Self {
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            dismissed: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
        }
    }

    /// Takes pieces until none is left. A panic is kept for the owner.
    fn take_pieces(&self, work: &(dyn Fn(usize) + Sync), pieces: usize) {
        let taking = AssertUnwindSafe(|| {
            loop {
                let piece = self.next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                work(piece);
            }
        });
        if let Err(panic) = catch_unwind(taking) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// What a member does: works on jobs until it is dismissed.
    fn serve(&self) {
        let (mut served, mut spins) = (0, 0);
        while !self.dismissed.load(Ordering::Acquire) {
            let epoch = self.epoch.load(Ordering::Relaxed);
            if epoch.is_multiple_of(2) || epoch == served {
                wait(&mut spins);
                continue;
            }
            // Sequentially consistent, like the owner's closing store and its look at `inside`: either the owner sees this
            // thread inside and waits for it, or this thread sees the job closed.
            self.inside.fetch_add(1, Ordering::SeqCst);
            let epoch = self.epoch.load(Ordering::SeqCst);
            if !epoch.is_multiple_of(2) {
                // SAFETY: this thread is counted and the job was open after that, so the owner stays in `run` and changes
                // neither `job` nor what it points to until this thread has left.
                if let Some(job) = unsafe { *self.job.get() } {
                    // SAFETY: as above; `run` borrows the closure until everybody has left.
                    self.take_pieces(unsafe { job.work.as_ref() }, job.pieces);
                }
                (served, spins) = (epoch, 0);
            }
            self.inside.fetch_sub(1, Ordering::Release);
        }
    }

    /// Runs all pieces, with the members' help. Called by the owner alone, and not from inside a job.
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes; `run` does not return before nobody uses the pointer any more.
        let unbound = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: no job is open and nobody is inside: the last `run` waited for that, and `inside` is raised for a moment
        // only by threads that find no open job and read nothing.
        unsafe { *self.job.get() = Some(Job { work: NonNull::from(unbound), pieces }) };
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.take_pieces(work, pieces);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while self.inside.load(Ordering::SeqCst) != 0 {
            wait(&mut spins);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

fn wait(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    if *spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Puts back what [`CURRENT`] was, also when the body panics.
struct Restore(Option<NonNull<Team>>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Dismisses the members, also when the body panics.
struct Dismiss<'a>(&'a Team);

impl Drop for Dismiss<'_> {
    fn drop(&mut self) {
        self.0.dismissed.store(true, Ordering::Release);
    }
}

/// Runs `body` on a thread of rayon's current pool, and keeps the pool's idle threads ready for the kernels that it calls.
///
/// For work of milliseconds: those threads spin, and do nothing else meanwhile. Threads that are busy are left alone.
pub fn awake<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    let team = Team::new();
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| team.serve());
        }
        let _dismiss = Dismiss(&team);
        let _restore = Restore(CURRENT.replace(Some(NonNull::from(&team))));
        body()
    })
}

/// Calls `work` with each of `0..pieces` once, on as many threads as there are, and returns when all are done.
pub(crate) fn share(pieces: usize, work: impl Fn(usize) + Sync) {
    if pieces <= 1 {
        return (0..pieces).for_each(work);
    }
    // Taken while it works: work that shares out work of its own does so without the team.
    match CURRENT.take() {
        Some(team) => {
            let _restore = Restore(Some(team));
            // SAFETY: `awake` sets the pointer to a team that lives until its body has returned, and takes it back then.
            // The body runs on this thread.
            unsafe { team.as_ref() }.run(pieces, &work);
        }
        None => (0..pieces).into_par_iter().with_max_len(1).for_each(&work),
    }
}

/// [`share`] of things to work on: each is given to one call.
pub(crate) fn share_each<T: Send>(things: impl IntoIterator<Item = T>, work: impl Fn(usize, T) + Sync) {
    let things: Vec<Mutex<Option<T>>> = things.into_iter().map(|thing| Mutex::new(Some(thing))).collect();
    share(things.len(), |i| {
        let thing = things[i].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thing) = thing {
            work(i, thing);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::ThreadPoolBuilder;

    /// Every piece once, by however many threads.
    fn counts(pieces: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        share(pieces, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_piece_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
            pool.install(|| {
                for pieces in [0, 1, 2, 7, 100] {
                    assert_eq!(counts(pieces), vec![1; pieces], "{threads} threads, asleep");
                }
                awake(|| {
                    for round in 0..2000 {
                        let pieces = round % 9;
                        assert_eq!(counts(pieces), vec![1; pieces], "{threads} threads, round {round}");
                    }
                });
            });
        }
    }

    #[test]
    fn results_are_visible_when_it_returns() {
        awake(|| {
            let mut numbers = vec![0usize; 64];
            for round in 1..500 {
                share_each(numbers.chunks_mut(8), |i, chunk| chunk.fill(round * 100 + i));
                assert!(numbers.iter().enumerate().all(|(at, n)| *n == round * 100 + at / 8), "round {round}");
            }
        });
    }

    #[test]
    fn work_may_share_out_work_and_bodies_may_nest() {
        let total = AtomicUsize::new(0);
        awake(|| {
            share(4, |_| {
                share(5, |_| {
                    total.fetch_add(1, Ordering::Relaxed);
                })
            });
            awake(|| {
                share(3, |_| {
                    total.fetch_add(1, Ordering::Relaxed);
                })
            });
            // The outer team is back.
            share(2, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 25);
    }

    #[test]
    fn several_bodies_at_once() {
        let sums: Vec<usize> =
            (0..16usize).into_par_iter().map(|i| awake(|| (0..100).map(|_| counts(i).len()).sum())).collect();
        assert_eq!(sums, (0..16).map(|i| 100 * i).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        awake(|| {
            for bad in 0..6 {
                let result = catch_unwind(|| share(6, |i| assert!(i != bad, "piece {i}")));
                let message = *result.expect_err("it panics").downcast::<String>().expect("a message");
                assert_eq!(message, format!("piece {bad}"));
                assert_eq!(counts(5), [1; 5]);
            }
        });
        assert!(catch_unwind(|| awake(|| panic!("body"))).is_err());
        assert_eq!(counts(5), [1; 5]);
    }
}
