//! The documentation is true: the configurations in `README.md` and `docs/` pass `--check`, the tables have every key with
//! its default, every metric and every outcome, and every link between the pages has a target.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    support::{Setup, skip},
    tls_listener,
};

/// A file in the folder of the manifest; `None` where only the sources were copied, as in a package build.
fn beside_the_manifest(name: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(&path).ok();
    if text.is_none() {
        skip(&format!("there is no {}", path.display()));
    }
    text
}

/// A page for readers: its path from the manifest, and its text.
struct Page {
    name: String,
    text: String,
}

/// `README.md` and every page in `docs/`, in the order of their names; `None` where only the sources were copied. Where the
/// README is, `docs/` must be too.
fn pages() -> Option<Vec<Page>> {
    let readme = Page {
        name: "README.md".to_owned(),
        text: beside_the_manifest("README.md")?,
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut pages = vec![readme];
    for entry in fs::read_dir(&folder).expect("docs/ is beside README.md") {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let name = path.file_name().unwrap().to_str().unwrap();
            pages.push(Page {
                name: format!("docs/{name}"),
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
    pages.sort_by(|one, other| one.name.cmp(&other.name));
    Some(pages)
}

/// The text of the section with this heading, to the next heading of its level or above, on whichever page has it.
fn section<'a>(pages: &'a [Page], heading: &str) -> &'a str {
    let mut found = pages
        .iter()
        .filter_map(|page| page.text.split_once(&format!("\n{heading}\n")));
    let (_, rest) = found
        .next()
        .unwrap_or_else(|| panic!("no page has the section {heading}"));
    assert!(found.next().is_none(), "two pages have {heading}");
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let ends = (1..=level).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level))));
    &rest[..ends.min().unwrap_or(rest.len())]
}

/// The cells of a row of a table, without the white space around them.
fn cells(line: &str) -> Vec<&str> {
    let inner = line
        .strip_prefix('|')
        .and_then(|line| line.strip_suffix('|'));
    inner.map_or_else(Vec::new, |inner| inner.split('|').map(str::trim).collect())
}

/// The words in back-ticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The words in back-ticks in the columns of this name, in all tables of a text.
fn column<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let mut index = None;
    let mut words = Vec::new();
    for line in text.lines() {
        let cells = cells(line);
        if cells.is_empty() {
            index = None;
        } else if let Some(index) = index {
            words.extend(cells.get(index).copied().into_iter().flat_map(quoted));
        } else {
            index = cells.iter().position(|cell| *cell == name);
        }
    }
    words
}

/// Every fenced block of this language, with the number of its first line.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        match &mut open {
            None if line == fence => open = Some((index + 2, String::new())),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some((_, block)) => block.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "a block without its end");
    blocks
}

/// A row of a table, without its back-ticks.
struct Row {
    heading: String,
    key: String,
    default: String,
}

fn rows(text: &str) -> Vec<Row> {
    let mut heading = "";
    let mut rows = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            heading = line;
        } else if line.starts_with("| `") {
            let cells: Vec<String> = line
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect();
            rows.push(Row {
                heading: heading.to_owned(),
                key: cells[1].clone(),
                default: cells[2].clone(),
            });
        }
    }
    rows
}

/// The files of certificates that a page names as those of the test's own directory.
fn in_own_directory(yaml: &str) -> String {
    [
        (
            "/etc/letsencrypt/live/example.com/fullchain.pem",
            "DIR/cert.pem",
        ),
        (
            "/etc/letsencrypt/live/example.com/privkey.pem",
            "DIR/key.pem",
        ),
        ("/tls/tls.crt", "DIR/cert.pem"),
        ("/tls/tls.key", "DIR/key.pem"),
        ("/tls/clients.pem", "DIR/ca.pem"),
    ]
    .iter()
    .fold(yaml.to_owned(), |yaml, (page, own)| yaml.replace(page, own))
}

#[test]
fn every_configuration_of_the_pages_passes_the_check() {
    let Some(pages) = pages() else {
        return;
    };
    let mut count = 0;
    for page in &pages {
        for (line, yaml) in blocks(&page.text, "yaml") {
            if !yaml.lines().any(|line| line.starts_with("routes:")) {
                continue;
            }
            let setup = Setup::new(&in_own_directory(&yaml));
            tls_listener::write_files(&setup.dir(), &tls_listener::authority());
            let run = setup.args(&["--check", "CONFIG"]).run();
            let at = format!("the block at {}:{line}", page.name);
            assert_eq!(run.code, Some(0), "{at}\n{}", run.err);
            count += 1;
        }
    }
    assert!(count >= 9, "only {count} blocks were found");
}

#[test]
fn the_pages_have_exactly_the_metrics_and_outcomes_of_the_program() {
    let Some(pages) = pages() else {
        return;
    };
    let proxy = Setup::new(
        "routes: [{path: /, target: 'unix:DIR/none'}]\nmetrics: {listen: '127.0.0.1:0'}\n",
    )
    .start();
    let shown = crate::metrics::page(&proxy);
    let after = |prefix: &'static str, end: char| {
        let rest = shown
            .lines()
            .filter_map(move |line| line.strip_prefix(prefix));
        rest.map(move |rest| rest.split(end).next().unwrap())
            .collect::<BTreeSet<_>>()
    };

    let metrics = section(&pages, "## Metrics");
    let first_cells = metrics.lines().map(cells).filter(|row| row.len() > 1);
    let told: BTreeSet<&str> = first_cells
        .flat_map(|row| quoted(row[0]))
        .map(|name| name.split('{').next().unwrap())
        .collect();
    assert_eq!(told, after("# TYPE lean_proxy_", ' '));

    let outcomes = column(section(&pages, "## Outcomes"), "outcome");
    let mut told: BTreeSet<&str> = outcomes.into_iter().collect();
    assert!(told.remove("ok"), "`ok` is not told");
    assert_eq!(told, after("lean_proxy_failures_total{outcome=\"", '"'));
}

#[test]
fn the_tables_of_the_pages_have_every_key_and_its_default() {
    let (Some(pages), Some(sample)) = (pages(), beside_the_manifest("config.yaml")) else {
        return;
    };
    let rows: Vec<Row> = pages.iter().flat_map(|page| rows(&page.text)).collect();
    let mut section = String::new();
    for line in sample.lines() {
        let text = line.trim_start_matches([' ', '-']).trim_start_matches("# ");
        let Some((key, value)) = text.split_once(':') else {
            continue;
        };
        let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        // a key that is commented out has a value without a comment
        let is_comment = line.trim_start().starts_with('#');
        if !is_key || (is_comment && (value.is_empty() || value.trim().contains(' '))) {
            continue;
        }
        if !line.starts_with(' ') {
            section = key.to_owned();
        }
        if value.is_empty() && section == key {
            continue;
        }
        let below = format!("{key}.");
        let row = rows.iter().find(|row| {
            let is_here = section == key || row.heading.contains(&format!("`{section}"));
            let name = row
                .key
                .strip_prefix(&format!("{section}."))
                .unwrap_or(&row.key);
            is_here && (name == key || name.starts_with(&below))
        });
        let row = row.unwrap_or_else(|| panic!("no page has a row for {section}.{key}"));
        // the defaults of a route's keys and of `listen` are described in words
        if !["routes", "listen"].contains(&section.as_str()) {
            assert_eq!(row.default, value.trim(), "the default of {section}.{key}");
        }
    }
}

#[test]
fn the_pages_have_every_option_and_every_variable_of_the_help() {
    let Some(pages) = pages() else {
        return;
    };
    let help = Setup::new("").args(&["--help"]).run().out;
    let (usage, rest) = help.split_once("environment:").unwrap();
    let (variables, _) = rest.split_once("exit codes:").unwrap();
    let command_line = section(&pages, "## Command line");
    let mut count = 0;
    for option in usage.split_whitespace().filter(|it| it.starts_with("--")) {
        let option = option.trim_end_matches([',', ';', ':']);
        assert!(command_line.contains(option), "{option} is not told");
        count += 1;
    }
    let told = column(section(&pages, "## Environment"), "variable");
    let is_upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    for line in variables.lines() {
        let (names, _) = line.trim().split_once("  ").unwrap_or_default();
        for name in names.split(", ") {
            let name = name.split('=').next().unwrap();
            assert!(name.bytes().all(is_upper), "no name: {name}");
            assert!(
                name.is_empty() || told.contains(&name),
                "{name} is not told"
            );
            count += usize::from(!name.is_empty());
        }
    }
    assert!(count >= 14, "only {count} were found");
}

/// The anchor of a heading on GitHub: lower case, hyphens for spaces, other punctuation left out.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|char| char.is_alphanumeric() || [' ', '-', '_'].contains(char));
    kept.map(|char| if char == ' ' { '-' } else { char })
        .collect()
}

/// The targets of the links and pictures of a text, outside fenced blocks.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for (index, prose) in text.split("\n```").enumerate() {
        if index % 2 == 0 {
            let ends = prose.split("](").skip(1);
            links.extend(ends.map(|rest| rest.split(')').next().unwrap_or(rest)));
        }
    }
    links
}

#[test]
fn every_link_of_the_pages_has_a_target() {
    let Some(pages) = pages() else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for page in &pages {
        let file = root.join(&page.name);
        for link in links(&page.text) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let to = if path.is_empty() {
                file.clone()
            } else {
                file.parent().unwrap().join(path)
            };
            assert!(to.exists(), "{}: {link}", page.name);
            if !heading.is_empty() {
                let text = fs::read_to_string(&to).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let is_there = headings.any(|line| anchor(line) == heading);
                assert!(is_there, "{}: {link}", page.name);
            }
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} links were found");
}

#[test]
fn the_figures_of_the_readme_are_in_the_benchmark() {
    let Some(pages) = pages() else {
        return;
    };
    let page = |name: &str| pages.iter().find(|page| page.name == name);
    let text = |name: &str| &page(name).unwrap_or_else(|| panic!("no {name}")).text;
    let benchmark: BTreeSet<&str> = text("docs/benchmark.md").lines().collect();
    let rows = section(&pages, "## Memory and speed").lines();
    let rows: Vec<&str> = rows.filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 8, "only {} rows were found", rows.len());
    for row in rows {
        assert!(benchmark.contains(row), "not in docs/benchmark.md: {row}");
    }
}
