//! Every key of the configuration, by section.
//!
//! Only for messages about a key in the wrong section. The keys that are read are decided by the other files here; a test
//! compares both.

/// Sections as messages show them, `""` for the top level, each with its keys.
const SECTIONS: [(&str, &[&str]); 17] = [
    (
        "",
        &[
            "version",
            "listen",
            "routes",
            "cors",
            "transport",
            "proxy",
            "server",
            "limits",
            "log",
            "health",
            "metrics",
        ],
    ),
    ("listen[]", &["address", "tls", "http2"]),
    (
        "listen[].tls",
        &["certificates", "min_version", "client_ca_file"],
    ),
    ("listen[].tls.certificates[]", &["cert_file", "key_file"]),
    (
        "routes[]",
        &[
            "path",
            "target",
            "redirect",
            "respond",
            "host",
            "scheme",
            "strip_prefix",
            "rewrite_location",
            "preserve_host",
            "response_header_timeout",
            "max_body_size",
            "request_headers",
            "response_headers",
            "tls",
            "http2",
            "cors",
        ],
    ),
    (
        "routes[].tls",
        &["server_name", "ca_file", "insecure_skip_verify"],
    ),
    ("routes[].redirect", &["to", "status"]),
    ("routes[].respond", &["status", "body", "content_type"]),
    ("routes[].request_headers", &["set", "remove"]),
    (
        "cors",
        &[
            "allowed_origins",
            "allowed_methods",
            "allowed_headers",
            "exposed_headers",
            "allow_credentials",
            "max_age",
        ],
    ),
    (
        "transport",
        &[
            "dial_timeout",
            "dial_keep_alive",
            "max_idle_conns",
            "max_idle_conns_per_host",
            "max_conns_per_host",
            "idle_conn_timeout",
            "response_header_timeout",
            "read_buffer_size",
            "write_buffer_size",
        ],
    ),
    (
        "proxy",
        &["max_concurrent_requests", "max_tunnels", "queue_timeout"],
    ),
    (
        "server",
        &[
            "header_timeout",
            "read_timeout",
            "write_timeout",
            "idle_timeout",
            "max_header_bytes",
            "max_connections",
            "shutdown_timeout",
            "shutdown_delay",
            "trusted_proxies",
            "unix_socket_mode",
        ],
    ),
    ("limits", &["memory"]),
    ("log", &["format", "level", "access"]),
    ("health", &["path"]),
    ("metrics", &["listen"]),
];

/// The sections that a key belongs to, to be read after "belongs to"; `None` for an unknown key.
pub fn home(key: &str) -> Option<String> {
    let homes: Vec<&str> = SECTIONS
        .iter()
        .filter(|(_, keys)| keys.contains(&key))
        .map(|(section, _)| match *section {
            "" => "the top level",
            section => section,
        })
        .collect();
    (!homes.is_empty()).then(|| homes.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::errors;

    /// A configuration with an unknown key `zzz` in a section; its error lists the keys that are known there.
    fn with_unknown_key(section: &str) -> String {
        let route = "routes: [{path: /, target: \"http://h\"";
        let listener = match section {
            "listen[]" => Some("zzz: 1"),
            "listen[].tls" => Some("tls: {zzz: 1}"),
            "listen[].tls.certificates[]" => Some("tls: {certificates: [{zzz: 1}]}"),
            _ => None,
        };
        if let Some(keys) = listener {
            return format!("{route}}}]\nlisten: [{{address: \":80\", {keys}}}]\n");
        }
        match section.strip_prefix("routes[]") {
            None if section.is_empty() => format!("{route}}}]\nzzz: 1\n"),
            None => format!("{route}}}]\n{section}: {{zzz: 1}}\n"),
            Some("") => format!("{route}, zzz: 1}}]\n"),
            Some(below) => {
                let key = below.trim_start_matches('.');
                format!("{route}, {key}: {{zzz: 1}}}}]\n")
            }
        }
    }

    #[test]
    fn the_table_lists_exactly_the_keys_that_are_read() {
        for (section, keys) in SECTIONS {
            let found = errors(&with_unknown_key(section));
            let known = found
                .iter()
                .find_map(|error| error.split_once("known here: "));
            let mut read: Vec<&str> = known.expect(section).1.split(", ").collect();
            let mut keys = keys.to_vec();
            read.sort_unstable();
            keys.sort_unstable();
            assert_eq!(read, keys, "{section}");
        }
    }

    #[test]
    fn the_error_for_a_key_in_the_wrong_section_names_the_right_one() {
        let route = "routes: [{path: /, target: \"http://h\"}]\n";
        for (lines, expected) in [
            (
                "max_body_size: 1",
                "max_body_size: unknown key here; `max_body_size` belongs to routes[]",
            ),
            (
                "server: {max_conns_per_host: 1}",
                "`max_conns_per_host` belongs to transport",
            ),
            (
                "server: {response_header_timeout: 1}",
                "`response_header_timeout` belongs to routes[] or transport",
            ),
            (
                "allowed_origins: [\"*\"]",
                "`allowed_origins` belongs to cors",
            ),
            ("log: {routes: []}", "`routes` belongs to the top level"),
            (
                "insecure_skip_verify: true",
                "`insecure_skip_verify` belongs to routes[].tls",
            ),
        ] {
            let found = errors(&format!("{route}{lines}\n"));
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{lines}: {found:?}"
            );
        }
    }
}
