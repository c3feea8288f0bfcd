//! Large allocations on huge pages.
//!
//! Weights and caches are read from end to end at every step. On pages of 4 KiB each is a new start for the machine's
//! foresight and an entry in its table of addresses; on pages of 2 MiB a plain loop reads up to twice as fast.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which asks for huge pages where an allocation can hold one.
///
/// A program opts in:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: fasa_cpu::HugePages = fasa_cpu::HugePages;
/// # fn main() {}
/// ```
///
/// Linux gives them unless `/sys/kernel/mm/transparent_hugepage/enabled` says `never`. Elsewhere this is the system's
/// allocator and nothing more.
#[derive(Debug, Clone, Copy)]
pub struct HugePages;

/// What most processors call huge. Smaller allocations cannot hold one.
const HUGE: usize = 2 << 20;

// SAFETY: every request goes to the system's allocator as it is, and what that returns is returned. Advice changes no byte and
// no address.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for; here and below.
        advised(unsafe { System.alloc(layout) }, layout.size(), Pages::Huge)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size(), Pages::Huge)
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        advised(unsafe { System.realloc(memory, layout, size) }, size, Pages::Huge)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What memory is to be kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    Ordinary,
    Huge,
}

/// Asks for `pages` under memory that was just allocated, and returns it. Pages that hold something stay what they are.
pub(crate) fn advised<T>(memory: *mut T, bytes: usize, pages: Pages) -> *mut T {
    #[cfg(target_os = "linux")]
    if bytes >= HUGE && !memory.is_null() {
        // SAFETY: no memory is touched.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        // To whole pages outwards: neighbours that share a page share the advice, so that huge pages can span both.
        let start = memory as usize / page * page;
        let length = (memory as usize + bytes).next_multiple_of(page) - start;
        let advice = match pages {
            Pages::Huge => libc::MADV_HUGEPAGE,
            Pages::Ordinary => libc::MADV_NOHUGEPAGE,
        };
        // SAFETY: both change how the system backs these pages, not what they hold. A kernel that does not know them says
        // so, and nothing is lost.
        unsafe { libc::madvise(start as *mut libc::c_void, length, advice) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (bytes, pages, HUGE);
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_systems() {
        for size in [1, 100, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 4097, 40 << 20] {
            for align in [1, 16, 4096] {
                let layout = Layout::from_size_align(size, align).expect("valid");
                // SAFETY: of size above 0; all accesses stay inside; freed once, with its layout.
                unsafe {
                    let memory = HugePages.alloc_zeroed(layout);
                    assert!(!memory.is_null() && (memory as usize).is_multiple_of(align), "{size} {align}");
                    let bytes = std::slice::from_raw_parts_mut(memory, size);
                    assert!(bytes.iter().all(|b| *b == 0), "{size} {align}");
                    bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 251) as u8);
                    let grown = HugePages.realloc(memory, layout, 2 * size);
                    let bytes = std::slice::from_raw_parts(grown, size);
                    assert!(bytes.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8), "{size} {align}");
                    HugePages.dealloc(grown, Layout::from_size_align(2 * size, align).expect("valid"));
                    let memory = HugePages.alloc(layout);
                    memory.write_bytes(7, size);
                    HugePages.dealloc(memory, layout);
                }
            }
        }
        assert!(advised(std::ptr::null_mut::<u8>(), 9 * HUGE, Pages::Ordinary).is_null());
    }

    /// The system's word on the pages of a mapping: `hg` where huge ones were asked for, `nh` where they were declined.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_knows_what_was_asked_for() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return; // a kernel without them
        }
        let layout = Layout::from_size_align(64 << 20, 16).expect("valid");
        let flags = |address: usize| {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("Linux has it");
            let mut inside = false;
            for line in smaps.lines() {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let number = |hex: &str| usize::from_str_radix(hex, 16).ok();
                if let Some((Some(from), Some(to))) = range.map(|(from, to)| (number(from), number(to))) {
                    inside = (from..to).contains(&address);
                } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                    return flags.to_string();
                }
            }
            panic!("{address:x} is not mapped");
        };
        // SAFETY: nothing is read or written; freed once.
        unsafe {
            let memory = HugePages.alloc(layout);
            assert!(flags(memory as usize + HUGE).contains(" hg"));
            advised(memory, layout.size(), Pages::Ordinary);
            let flags = flags(memory as usize + HUGE);
            assert!(flags.contains(" nh") && !flags.contains(" hg"), "{flags}");
            HugePages.dealloc(memory, layout);
        }
    }
}
