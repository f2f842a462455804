//! The structure of the sources: which module may import which.
//!
//! A room is a file under `src/`. It imports from its own floor or from one below, and there is no cycle of imports. Tests
//! inside a room may import anything.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails where the sources cannot be read"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The floors from the lowest up; a room belongs to the longest entry that is a prefix of its path.
const FLOORS: &[&[&str]] = &[
    // values and decisions: no tokio, no socket, no clock
    &[
        "sys",
        "config",
        "any_certificate",
        "client_address",
        "client_group",
        "cors",
        "direct",
        "failure",
        "fields",
        "location",
        "outcome",
        "route",
        "http1/cursor",
        "http1/framing",
        "http1/refusal",
        "http1/request",
        "http1/request_head",
        "http1/response_head",
        "http1/chunked",
        "http1/headers",
        "http1/authority",
        "http2/frames",
        "http2/head",
    ],
    &[
        "cli",
        "memory",
        "clock",
        "net",
        "process",
        "observe",
        "connection_table",
        "yield_budget",
    ],
    &["upstream", "http1", "http2"],
    &["exchange"],
    &["server", "http2/server"],
    &["lib", "main"],
];

/// Rooms that use neither tokio nor a clock.
const PURE: &[&str] = &[
    "config",
    "client_address",
    "client_group",
    "cors",
    "direct",
    "location",
    "failure",
    "fields",
    "outcome",
    "route",
    "http1/cursor",
    "http1/framing",
    "http1/refusal",
    "http1/request",
    "http1/request_head",
    "http1/response_head",
    "http1/chunked",
    "http1/headers",
    "http1/authority",
    "http2/frames",
    "http2/head",
];

struct Room {
    /// Its path without `src/`, `/mod.rs` and `.rs`.
    name: String,
    /// What it holds without its tests.
    text: String,
}

fn rooms() -> Vec<Room> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&source, &mut files);
    files.sort();
    files.iter().map(|path| room(path, &source)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("test_support.rs")
        {
            files.push(path);
        }
    }
}

fn room(path: &Path, source: &Path) -> Room {
    let whole = fs::read_to_string(path).unwrap();
    let name = path.strip_prefix(source).unwrap().with_extension("");
    let name = name.to_str().unwrap().trim_end_matches("/mod").to_owned();
    // the tests are the last item of a file
    let start = whole
        .match_indices("\n#[cfg(test)]\n")
        .map(|(at, _)| at)
        .find(|at| {
            let after = whole[at + 14..]
                .lines()
                .find(|line| !line.starts_with("#["));
            after.is_some_and(|line| line.contains("mod tests {"))
        })
        .unwrap_or(whole.len());
    Room {
        name,
        text: whole[..start].to_owned(),
    }
}

/// The paths that `use crate::…` names, without the item where that is a type, function or constant.
fn imports(text: &str, names: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in text.split("\nuse crate::").skip(1) {
        let tree: String = part
            .split(';')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        for leaf in leaves(&tree) {
            let mut path = leaf.replace("::", "/");
            while !names.contains(path.as_str()) {
                match path.rsplit_once('/') {
                    Some((front, _)) => path.truncate(front.len()),
                    None => break,
                }
            }
            found.insert(path);
        }
    }
    found
}

/// `a::{b,c::{d}}` is `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<String> {
    let Some((front, rest)) = tree.split_once('{') else {
        return vec![tree.to_owned()];
    };
    let rest = rest.strip_suffix('}').unwrap_or(rest);
    let mut depth = 0;
    rest.split(|char| {
        depth += i32::from(char == '{') - i32::from(char == '}');
        char == ',' && depth == 0
    })
    .filter(|part| !part.is_empty())
    .flat_map(leaves)
    .map(|leaf| format!("{front}{leaf}"))
    .collect()
}

fn floor(name: &str) -> usize {
    let fits = |entry: &&str| name == *entry || name.starts_with(&format!("{entry}/"));
    FLOORS
        .iter()
        .enumerate()
        .filter_map(|(floor, entries)| {
            let longest = entries
                .iter()
                .filter(|entry| fits(entry))
                .map(|entry| entry.len())
                .max()?;
            Some((longest, floor))
        })
        .max()
        .unwrap_or_else(|| panic!("src/{name}.rs has no floor: give it one in {}", file!()))
        .1
}

#[test]
fn no_room_imports_from_a_floor_above() {
    let rooms = rooms();
    let names: BTreeSet<&str> = rooms.iter().map(|room| room.name.as_str()).collect();
    assert!(names.len() > 40, "these are not all: {names:?}");
    let upward: Vec<String> = rooms
        .iter()
        .flat_map(|room| {
            imports(&room.text, &names)
                .into_iter()
                .map(move |other| (room, other))
        })
        .filter(|(room, other)| floor(other) > floor(&room.name))
        .map(|(room, other)| format!("{} imports {other}", room.name))
        .collect();
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn there_is_no_cycle_of_imports() {
    let rooms = rooms();
    let names: BTreeSet<&str> = rooms.iter().map(|room| room.name.as_str()).collect();
    let mut graph: BTreeMap<&str, BTreeSet<String>> = rooms
        .iter()
        .map(|room| {
            let mut others = imports(&room.text, &names);
            others.remove(&room.name);
            (room.name.as_str(), others)
        })
        .collect();
    // remove rooms whose imports are all removed, until no more can be: the rest are cycles
    while let Some(leaf) = graph
        .iter()
        .find(|(_, others)| {
            others
                .iter()
                .all(|other| !graph.contains_key(other.as_str()))
        })
        .map(|(name, _)| *name)
    {
        graph.remove(leaf);
    }
    for others in graph.values_mut() {
        others.retain(|other| names.contains(other.as_str()));
    }
    assert!(
        graph.is_empty(),
        "these are in or behind a circle: {graph:#?}"
    );
}

#[test]
fn pure_rooms_use_neither_tokio_nor_a_clock() {
    for room in rooms() {
        let is_pure = PURE
            .iter()
            .any(|entry| room.name == *entry || room.name.starts_with(&format!("{entry}/")));
        for word in [
            "tokio::",
            "Instant::now",
            "SystemTime::now",
            "TcpStream",
            "UnixStream",
        ] {
            assert!(
                !(is_pure && room.text.contains(word)),
                "src/{}.rs knows {word}",
                room.name
            );
        }
    }
}

#[test]
fn every_room_says_what_it_is() {
    for room in rooms() {
        assert!(
            room.text.starts_with("//!"),
            "src/{}.rs does not say what it is",
            room.name
        );
    }
}
