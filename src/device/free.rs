//! How much memory the machine can still give to this process. Known on Linux alone.

use std::fs::read_to_string;
use std::path::Path;

/// Free bytes: what the kernel calls available, or less where a control group (a container, a batch job) has a limit.
pub(super) fn free_memory() -> Option<u64> {
    free_below(Path::new("/"))
}

/// The same, from the files of a system below `root`.
fn free_below(root: &Path) -> Option<u64> {
    let info = read_to_string(root.join("proc/meminfo")).ok()?;
    let available = field(&info, "MemAvailable:")?.checked_mul(1024)?;
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| free_in_groups(root, line));
    Some(limits.fold(available, u64::min))
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The names of a version of control groups: limit, use, and the caches that the kernel gives up when it must.
struct Names {
    limit: &'static str,
    used: &'static str,
    caches: [&'static str; 2],
}

const FIRST: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    caches: ["total_inactive_file ", "total_active_file "],
};
const SECOND: Names =
    Names { limit: "memory.max", used: "memory.current", caches: ["inactive_file ", "active_file "] };

/// What a group, given as a line `number:controllers:path`, and those around it leave free.
fn free_in_groups(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let controllers = parts.next()?;
    let path = parts.next()?.trim_start_matches('/');
    let (top, names) = match controllers {
        "" => (root.join("sys/fs/cgroup"), SECOND),
        list if list.split(',').any(|name| name == "memory") => (root.join("sys/fs/cgroup/memory"), FIRST),
        _ => return None,
    };
    let group = top.join(path);
    group.ancestors().take_while(|dir| dir.starts_with(&top)).filter_map(|dir| free_in(dir, &names)).min()
}

/// What one group leaves free; none without a limit.
fn free_in(dir: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(names.limit)?;
    let stat = read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cached: u64 = names.caches.iter().filter_map(|name| field(&stat, name)).sum();
    Some(limit.saturating_sub(number(names.used)?.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_smallest_limit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(free_below(dir.path()), None);
        put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    5000 kB\n");
        assert_eq!(free_below(dir.path()), Some(5000 << 10));
        // Version 2: the group has no limit, the one around it has.
        put("proc/self/cgroup", "0::/job/step\n");
        put("sys/fs/cgroup/job/step/memory.max", "max\n");
        put("sys/fs/cgroup/job/memory.max", "4000000\n");
        put("sys/fs/cgroup/job/memory.current", "3000000\n");
        put("sys/fs/cgroup/job/memory.stat", "anon 5\ninactive_file 200000\nactive_file 300000\n");
        assert_eq!(free_below(dir.path()), Some(1_500_000));
        // Version 1.
        put("proc/self/cgroup", "5:cpu:/\n4:hugetlb,memory:/job\n");
        put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000\n");
        put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1200\n");
        assert_eq!(free_below(dir.path()), Some(0));
    }
}
