//! Any text gives a configuration or a list of errors, without a panic and in bounded memory.

#![no_main]
use libfuzzer_sys::fuzz_target;

use lean_proxy::fuzzing::{
    config::{self, Source},
    route::holds_dot_segment,
};

#[path = "../scales.rs"]
mod scales;

use scales::Scales;

#[global_allocator]
static SCALES: Scales = Scales::new();

/// Bounds the memory for a text of a few kilobytes: `yaml.rs` allows a tree of 16 MiB, and there are copies of its parts.
const CEILING: usize = 40 << 20;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let environment = |name: &str| match name {
        "A" => Some("a".to_owned()),
        "URL" => Some("http://127.0.0.1:9000/base".to_owned()),
        "SECRET" => Some("hunter2 : [".to_owned()),
        "PORT" => Some("8081".to_owned()),
        _ => None,
    };
    let load = || config::load(Source::Text("config.yaml", text), &environment);
    let (loaded, bytes) = SCALES.weigh(load);
    assert!(bytes < CEILING, "{bytes} bytes were held");
    match loaded {
        Ok(config) => {
            assert!(!config.listen.is_empty());
            assert!(config.routes.len() > 0);
            assert!((1..=64).contains(&config.threads));
            for route in config.routes.iter() {
                let base = route.target().map(|target| &target.base);
                for path in [Some(&route.path), base].into_iter().flatten() {
                    assert!(path.is_empty() || path.starts_with('/'), "{path:?}");
                    assert!(!holds_dot_segment(path), "{path:?}");
                    assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
                }
                assert_ne!(route.path, config.health_path);
            }
            for warning in &config.warnings {
                one_line(warning);
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors.iter().for_each(|error| one_line(error));
            assert_eq!(
                load().err(),
                Some(errors),
                "the errors differ between two loads"
            );
        }
    }
});

fn one_line(message: &str) {
    assert!(
        !message.chars().any(|c| c.is_control()),
        "a message of more than one line: {message:?}"
    );
}
