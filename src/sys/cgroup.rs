//! The memory limit of the process's cgroup, and how much of it is in use.
//!
//! Reads the files of both cgroup versions; never writes one. What cannot be read or parsed counts as no limit.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// The memory limit of this process, and the file that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// In bytes, below 2^60: anything above counts as no limit.
    pub bytes: u64,
    /// Path of the file, such as `/sys/fs/cgroup/memory.max`.
    pub source: String,
}

/// The smallest limit of the process's cgroup and its parents, of both versions; `None` = no limit.
pub fn cgroup_limit() -> Option<MemoryLimit> {
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    smallest_limit(&limit_files(&cgroup, &mounts), |path| {
        fs::read_to_string(path).ok()
    })
}

pub fn smallest_limit(
    files: &[PathBuf],
    read: impl Fn(&Path) -> Option<String>,
) -> Option<MemoryLimit> {
    let limits = files.iter().filter_map(|path| {
        Some(MemoryLimit {
            bytes: parse_limit(&read(path)?)?,
            source: path.display().to_string(),
        })
    });
    limits.min_by_key(|limit| limit.bytes)
}

/// The content of a limit file: `max` and numbers that mean "none" (v1 writes 2^63 rounded to a page) give `None`.
pub fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// Every file that may hold a limit for this process: its own cgroup's first, then its parents'.
pub fn limit_files(cgroup: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (root, mount_point, version) in mounts.lines().filter_map(parse_mount) {
        let Some(path) = own_path(cgroup, version) else {
            continue;
        };
        for directory in directories(path, &root, &mount_point) {
            files.extend(version.limits().iter().map(|name| directory.join(name)));
        }
    }
    if files.is_empty() {
        // In a container mountinfo may not show the cgroup: try the usual paths.
        files.extend(
            ["memory.max", "memory.high", "memory/memory.limit_in_bytes"]
                .map(|name| Path::new("/sys/fs/cgroup").join(name)),
        );
    }
    files
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

impl Version {
    fn limits(self) -> &'static [&'static str] {
        match self {
            Version::One => &["memory.limit_in_bytes"],
            Version::Two => &["memory.max", "memory.high"],
        }
    }
}

/// Root inside the file system, mount point and version, if this line of mountinfo is a cgroup file system that may have
/// the memory controller (proc(5)).
pub fn parse_mount(line: &str) -> Option<(String, String, Version)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, mount_point) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if kind.nth(1)?.split(',').any(|name| name == "memory") => Version::One,
        _ => return None,
    };
    Some((root, mount_point, version))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The process's path in the hierarchy with the memory controller, from /proc/self/cgroup (cgroups(7)).
pub fn own_path(cgroup: &str, version: Version) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let ours = match version {
            Version::One => controllers.split(',').any(|name| name == "memory"),
            Version::Two => number == "0" && controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// The directory of the process's cgroup and its parents up to the mount point. For a path outside of what is mounted (a
/// container that sees the host's path, or `/../…`) only the mount point, which then is the container's own cgroup.
pub fn directories(path: &str, root: &str, mount_point: &str) -> Vec<PathBuf> {
    let below = Path::new(path)
        .strip_prefix(root)
        .ok()
        .filter(|below| !below.components().any(|part| part.as_os_str() == ".."))
        .unwrap_or(Path::new(""));
    below
        .ancestors()
        .map(|below| Path::new(mount_point).join(below))
        .collect()
}

/// The memory that counts against a limit; its files stay open, and reading them does not allocate.
#[derive(Debug)]
pub struct MemoryUse {
    use_file: File,
    stat_file: Option<File>,
    page: u64,
}

impl MemoryUse {
    /// The memory of the cgroup whose file gave the limit: the process's own, or a parent. `None` where it cannot be read.
    pub fn of_cgroup(limit: &MemoryLimit) -> Option<MemoryUse> {
        let source = Path::new(&limit.source);
        let name = match source.file_name()?.to_str()? {
            "memory.limit_in_bytes" => "memory.usage_in_bytes",
            _ => "memory.current",
        };
        let used = MemoryUse {
            use_file: File::open(source.with_file_name(name)).ok()?,
            stat_file: File::open(source.with_file_name("memory.stat")).ok(),
            page: 1,
        };
        used.read().map(|_| used)
    }

    /// The resident pages of this process, for where no cgroup has a limit. Kernel memory is not included.
    pub fn of_process() -> Option<MemoryUse> {
        // SAFETY: no precondition.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let used = MemoryUse {
            use_file: File::open("/proc/self/statm").ok()?,
            stat_file: None,
            page: u64::try_from(page).ok()?,
        };
        used.read().map(|_| used)
    }

    /// Bytes in use now; `None` if the file cannot be read (the cgroup was removed).
    pub fn read(&self) -> Option<u64> {
        let mut buffer = [0; 128];
        let mut words = self.words(&mut buffer)?;
        // statm: total, resident, resident and backed by files, …
        words
            .nth(usize::from(self.page > 1))?
            .checked_mul(self.page)
    }

    /// Bytes of [`read`](Self::read) that the kernel can reclaim by itself: the page cache, or the process's file-backed
    /// pages.
    pub fn reclaimable(&self) -> u64 {
        let Some(stat) = &self.stat_file else {
            let mut buffer = [0; 128];
            let shared = self.words(&mut buffer).and_then(|mut words| words.nth(2));
            return shared.filter(|_| self.page > 1).unwrap_or(0) * self.page;
        };
        // v2 has some sixty lines, 2 kB
        let mut buffer = [0; 8192];
        read_at_start(stat, &mut buffer).map_or(0, file_cache)
    }

    fn words<'a>(&self, buffer: &'a mut [u8]) -> Option<impl Iterator<Item = u64> + 'a> {
        let text = read_at_start(&self.use_file, buffer)?;
        Some(
            text.split_ascii_whitespace()
                .filter_map(|word| word.parse().ok()),
        )
    }
}

pub fn read_at_start<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let length = file.read_at(buffer, 0).ok()?;
    std::str::from_utf8(buffer.get(..length)?).ok()
}

/// The bytes of page cache in the text of memory.stat. v1 also has lines without `total_`, which leave out child cgroups.
pub fn file_cache(stat: &str) -> u64 {
    let sum = |names: [&str; 2]| -> Option<u64> {
        let values = stat.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.parse::<u64>().ok())?
        });
        values.reduce(u64::saturating_add)
    };
    sum(["total_inactive_file", "total_active_file"])
        .or_else(|| sum(["inactive_file", "active_file"]))
        .unwrap_or(0)
}
