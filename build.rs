//! Passes `layout.ld`, which includes `layout_busy.ld`, to the linker of the static binary, and the commit to the program. `LEAN_PROXY_LINK_MAP` names a
//! file for the linker's map, which `bench/layout.py` reads. Other targets are linked as usual.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rerun-if-changed=layout_busy.ld");
    println!("cargo::rerun-if-env-changed=LEAN_PROXY_LINK_MAP");
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-L,{folder},-T,{folder}/layout.ld");
        if let Ok(map) = env::var("LEAN_PROXY_LINK_MAP") {
            println!("cargo::rustc-link-arg-bins=-Wl,-Map,{map}");
        }
    }
    println!("cargo::rerun-if-env-changed=LEAN_PROXY_COMMIT");
    let commit = match env::var("LEAN_PROXY_COMMIT") {
        Ok(commit) => Some(commit),
        Err(_) => commit_of(Path::new(&folder)),
    };
    let is_plain = |commit: &String| {
        (1..=64).contains(&commit.len())
            && commit
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    println!(
        "cargo::rustc-env=LEAN_PROXY_COMMIT={}",
        commit.filter(is_plain).unwrap_or_default()
    );
}

/// The commit that is checked out, where this folder is a repository itself. A copy of the sources inside another
/// repository has no commit of its own, and neither has a build from a tarball.
fn commit_of(folder: &Path) -> Option<String> {
    if !folder.join(".git").exists() {
        return None;
    }
    let git = |arguments: &[&str]| {
        let run = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(run.stdout).ok()?.trim().to_owned();
        (run.status.success() && !text.is_empty()).then_some(text)
    };
    // Each commit and checkout adds a line to the log of HEAD; HEAD itself changes at least with a checkout. Naming a file
    // that does not exist would run this at every build.
    for name in ["logs/HEAD", "HEAD"] {
        let file = git(&["rev-parse", "--git-path", name]).map(|path| folder.join(path));
        if let Some(file) = file.filter(|file| file.exists()) {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
