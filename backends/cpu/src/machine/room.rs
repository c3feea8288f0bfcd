//! How much memory this process can still have, as Linux says it.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes of memory that this process can still take: what the machine has left, its control groups, and its own limits on
/// data and address space. `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemAvailable:"));
    let groups =
        read_to_string("/proc/self/cgroup").ok().and_then(|text| in_groups(&text, Path::new("/sys/fs/cgroup")));
    let limits = (read_to_string("/proc/self/limits").ok()).zip(read_to_string("/proc/self/status").ok());
    let own = limits.and_then(|(limits, status)| in_limits(&limits, &status));
    [machine, groups, own].into_iter().flatten().min()
}

/// The number in the line that begins with `name`, in kB, as bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the soft limits leave.
fn in_limits(limits: &str, status: &str) -> Option<u64> {
    let left = |limit: &str, used: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
        let most: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(most.saturating_sub(kilobytes(status, used)?))
    };
    let (data, space) = (left("Max data size", "VmData:"), left("Max address space", "VmSize:"));
    [data, space].into_iter().flatten().min()
}

/// What the control groups of this process leave, the innermost and those around it. What they count of files that the
/// system can drop at any time is not taken.
fn in_groups(groups: &str, root: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, limit, used, files) = match controllers {
            "" => (root.to_owned(), "memory.max", "memory.current", "inactive_file"),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = root.join(group);
            let number = |file: &str| read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
            let Some((limit, used)) = number(limit).zip(number(used)) else { continue };
            let stat = read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let droppable = stat.lines().find_map(|line| line.strip_prefix(files)?.trim().parse::<u64>().ok());
            let left = limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0)));
            least = Some(least.map_or(left, |least| least.min(left)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_says() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn lines_of_the_system() {
        assert_eq!(kilobytes("MemFree:  7 kB\nMemAvailable:   23 kB\n", "MemAvailable:"), Some(23 * 1024));
        assert_eq!(kilobytes("MemFree: 7 kB\n", "MemAvailable:"), None);
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             1048576              unlimited            bytes     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        let status = "VmSize:\t  9000 kB\nVmData:\t   24 kB\n";
        assert_eq!(in_limits(limits, status), Some(1_000_000 / 1000 * 1024));
        assert_eq!(in_limits(&limits.replace("1048576  ", "unlimited"), status), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 1\ninactive_file 200\nactive_file 9\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "600\n");
        write("memory/c/memory.limit_in_bytes", "5000\n");
        write("memory/c/memory.usage_in_bytes", "4990\n");
        for (groups, want) in [
            ("0::/a/b\n", Some(500)),
            ("4:cpu,memory:/c\n0::/a\n", Some(10)),
            ("3:cpu:/c\n", None),
            ("0::/\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(in_groups(groups, root.path()), want, "{groups}");
        }
    }
}
