//! Finds the address of the client behind trusted proxies, for the log.
//!
//! Pure. Only entries that a trusted proxy has written are used: `X-Forwarded-For` is read from its end, where the nearest
//! proxy appended, and the first address that is not a trusted proxy is the client.

use std::net::{IpAddr, SocketAddr};

use crate::{config::address::Network, fields::Fields, http1::authority::ipv6_literal};

/// Bounds the addresses that are read: a header field may hold thousands, and real chains have a few.
pub const MOST: usize = 32;

/// The client's address for the log. `peer` is the other side of the connection (`None` on a unix socket, which counts as
/// trusted), `trusted` is `server.trusted_proxies`. Returns the peer where it is not trusted or the field is absent, and the
/// last trusted address read where the next entry is not an address.
pub fn real_client(peer: Option<IpAddr>, trusted: &[Network], headers: &Fields) -> Option<IpAddr> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    let fields = headers.get_all("x-forwarded-for").rev();
    let hops = fields.flat_map(|field| str::from_utf8(field).unwrap_or("?").rsplit(','));
    for hop in hops.take(MOST) {
        if !client.is_none_or(is_trusted) {
            return client;
        }
        let Some(address) = parse(hop.trim()) else {
            return client;
        };
        client = Some(address);
    }
    client
}

/// Parses an address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
pub fn parse(hop: &str) -> Option<IpAddr> {
    ipv6_literal(hop)
        .unwrap_or(hop)
        .parse::<IpAddr>()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix: u8) -> Network {
        Network {
            address: address.parse().unwrap(),
            prefix,
        }
    }

    #[test]
    fn the_client_is_the_first_hop_that_is_not_trusted() {
        let trusted = [network("10.0.0.0", 8), network("2001:db8::", 32)];
        for (peer, fields, client) in [
            ("192.0.2.1", &["198.51.100.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
            (
                "10.0.0.1",
                &["203.0.113.9, 198.51.100.1, 10.9.9.9"],
                "198.51.100.1",
            ),
            (
                "10.0.0.1",
                &["203.0.113.9", "198.51.100.1", "10.9.9.9"],
                "198.51.100.1",
            ),
            ("10.0.0.1", &["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("2001:db8::7", &["[2001:4860::8]:443"], "2001:4860::8"),
            ("2001:db8::7", &["[2001:4860::8]"], "2001:4860::8"),
            ("2001:db8::7", &["2001:4860::8"], "2001:4860::8"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1,  , 10.2.2.2"], "10.2.2.2"),
            ("10.0.0.1", &["\u{e9}"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
        ] {
            let headers: Fields = fields
                .iter()
                .map(|field| ("x-forwarded-for", field))
                .collect();
            let found = real_client(Some(peer.parse().unwrap()), &trusted, &headers);
            assert_eq!(found, Some(client.parse().unwrap()), "{peer} {fields:?}");
        }
    }

    #[test]
    fn a_unix_socket_is_trusted_and_a_long_field_costs_little() {
        let trusted = [network("10.0.0.0", 8)];
        let mut headers = Fields::new();
        assert_eq!(real_client(None, &trusted, &headers), None);
        let long = format!("198.51.100.1{}", ", 10.0.0.1".repeat(5_000));
        headers.set("x-forwarded-for", long);
        let last: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(real_client(None, &trusted, &headers), Some(last));
    }
}
