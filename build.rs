//! Tells the linker of the static binary where code is to stand; see `layout.ld`. Other targets link as they please.
//! `LEAN_PROXY_LINK_MAP` names a file for the linker's map, which `bench/layout.py` reads.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rerun-if-env-changed=LEAN_PROXY_LINK_MAP");
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/layout.ld");
        if let Ok(map) = env::var("LEAN_PROXY_LINK_MAP") {
            println!("cargo::rustc-link-arg-bins=-Wl,-Map,{map}");
        }
    }
}
