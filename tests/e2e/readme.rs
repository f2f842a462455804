//! The README keeps its word: its configurations pass `--check`, its tables know every key and default.

use std::{fs, path::Path};

use crate::support::{Setup, skip};

/// What stands beside the manifest; `None` where only the sources were copied, as a package build does.
fn beside_the_manifest(name: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(&path).ok();
    if text.is_none() {
        skip(&format!("there is no {}", path.display()));
    }
    text
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

#[test]
fn every_configuration_of_the_readme_passes_the_check() {
    let Some(readme) = beside_the_manifest("README.md") else {
        return;
    };
    let mut count = 0;
    for (line, yaml) in blocks(&readme, "yaml") {
        if !yaml.lines().any(|line| line.starts_with("routes:")) {
            continue;
        }
        let run = Setup::new(&yaml).args(&["--check", "CONFIG"]).run();
        assert_eq!(
            run.code,
            Some(0),
            "the block at README.md:{line}\n{}",
            run.err
        );
        count += 1;
    }
    assert!(count >= 6, "only {count} blocks were found");
}

#[test]
fn the_readme_knows_every_metric_and_every_outcome_and_no_other_metric() {
    let Some(readme) = beside_the_manifest("README.md") else {
        return;
    };
    let proxy = Setup::new(
        "routes: [{path: /, target: 'unix:DIR/none'}]\nmetrics: {listen: '127.0.0.1:0'}\n",
    )
    .start();
    let page = crate::metrics::page(&proxy);
    let mut shown = Vec::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE lean_proxy_") {
            shown.push(rest.split(' ').next().unwrap().to_owned());
        }
        if let Some(rest) = line.strip_prefix("lean_proxy_failures_total{outcome=\"") {
            let word = rest.split('"').next().unwrap();
            assert!(readme.contains(&format!("`{word}`")), "{word} is not told");
        }
    }
    let (_, section) = readme.split_once("### Metrics\n").unwrap();
    let section = section.split("\n### ").next().unwrap();
    let mut told: Vec<String> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| {
            line.split('|')
                .nth(1)
                .unwrap()
                .split('`')
                .skip(1)
                .step_by(2)
        })
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect();
    shown.sort();
    told.sort();
    assert_eq!(told, shown);
}

#[test]
fn the_tables_of_the_readme_know_every_key_and_its_default() {
    let (Some(readme), Some(sample)) = (
        beside_the_manifest("README.md"),
        beside_the_manifest("config.yaml"),
    ) else {
        return;
    };
    let rows = rows(&readme);
    let mut section = String::new();
    for line in sample.lines() {
        let text = line.trim_start_matches([' ', '-']).trim_start_matches("# ");
        let Some((key, value)) = text.split_once(':') else {
            continue;
        };
        let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        // what is commented out has a value and nothing behind it
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
        let row = row.unwrap_or_else(|| panic!("README.md has no row for {section}.{key}"));
        // a route's keys, and `listen`, have words for what they fall back on
        if !["routes", "listen"].contains(&section.as_str()) {
            assert_eq!(row.default, value.trim(), "the default of {section}.{key}");
        }
    }
}
