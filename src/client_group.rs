//! Groups of clients that count as one where places are shared: the same IPv4 address, the same IPv6 /64, or unix sockets.
//!
//! Pure. A group has eight bytes and is stored with its connection, so there is no table of addresses that could grow. At
//! most one group can hold more than half of the places: [`majority`] finds it in two passes, without memory.

use std::net::IpAddr;

use crate::{client_address, config::address::Network};

/// Whom a client counts as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(u64);

/// A group that holds more than half of the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Majority {
    /// The group.
    pub group: Group,
    /// How many it holds.
    pub count: usize,
    /// How many there are in all.
    pub total: usize,
}

/// A group that holds more than an equal share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surplus {
    /// Which one.
    pub group: Group,
    /// How many it holds beyond its share.
    pub count: usize,
}

/// IPv4 addresses, told apart from IPv6 networks: `0:ffff::/32` is not given to anybody.
const IPV4: u64 = 0xffff_0000_0000;

impl Group {
    /// The group of all clients on unix sockets.
    pub const UNIX: Group = Group(0);

    /// The group of an address; `None` = a unix socket.
    pub fn of(address: Option<IpAddr>) -> Group {
        match address.map(|address| address.to_canonical()) {
            None => Group::UNIX,
            Some(IpAddr::V4(v4)) => Group(IPV4 | u64::from(v4.to_bits())),
            Some(IpAddr::V6(v6)) => Group((v6.to_bits() >> 64) as u64),
        }
    }

    /// The group of the client behind trusted proxies: the last address of `X-Forwarded-For` that is not itself a
    /// trusted proxy. `fields` are the values of that field in their order. `None`: `peer` is not trusted, or sent no address.
    pub fn forwarded<'a>(
        peer: Option<IpAddr>,
        trusted: &[Network],
        fields: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> Option<Group> {
        let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
        if !peer.is_none_or(is_trusted) {
            return None;
        }
        let mut last = None;
        let hops = fields.rev().flat_map(|field| field.rsplit(|b| *b == b','));
        for hop in hops.take(client_address::MOST) {
            let hop = str::from_utf8(hop.trim_ascii()).ok();
            let Some(address) = hop.and_then(client_address::parse) else {
                break;
            };
            last = Some(address);
            if !is_trusted(address) {
                break;
            }
        }
        last.map(|address| Group::of(Some(address)))
    }
}

/// The values of a field in a raw request head that was validated before.
pub fn field_values<'a>(
    head: &'a [u8],
    name: &'a [u8],
) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    head.split(|byte| *byte == b'\n').filter_map(move |line| {
        let (start, rest) = line.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":")?;
        start.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// The group to which more than half of these belong (Boyer and Moore's vote, then a second pass to count).
pub fn majority(groups: impl Iterator<Item = Group> + Clone) -> Option<Majority> {
    let (mut candidate, mut lead, mut total) = (Group::default(), 0_usize, 0);
    for group in groups.clone() {
        total += 1;
        if lead == 0 {
            candidate = group;
        }
        if group == candidate {
            lead += 1;
        } else {
            lead -= 1;
        }
    }
    let count = groups.filter(|group| *group == candidate).count();
    (count * 2 > total).then_some(Majority {
        group: candidate,
        count,
        total,
    })
}

/// The groups that hold more than an equal share of something, the one that holds most first. A share is what each has
/// where all is divided, rounded up, between those that hold some of it (`holders`, an entry for each that is held) and
/// those that wait for some (`waiting`).
pub fn above_equal_share(
    holders: impl Iterator<Item = Group>,
    waiting: impl Iterator<Item = Group>,
) -> Vec<Surplus> {
    let mut held: Vec<Group> = holders.collect();
    held.sort_unstable();
    let mut groups: Vec<Group> = held.iter().copied().chain(waiting).collect();
    groups.sort_unstable();
    groups.dedup();
    let share = held.len().div_ceil(groups.len().max(1));
    let runs = held.chunk_by(|one, other| one == other);
    let mut above: Vec<Surplus> = runs
        .filter_map(|run| {
            let count = run.len().checked_sub(share).filter(|count| *count > 0)?;
            let group = *run.first()?;
            Some(Surplus { group, count })
        })
        .collect();
    above.sort_by_key(|surplus| std::cmp::Reverse(surplus.count));
    above
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::address::parse_network;

    fn group(address: &str) -> Group {
        Group::of(Some(address.parse().unwrap()))
    }

    #[test]
    fn an_ipv4_address_is_a_group_and_ipv6_is_grouped_by_network() {
        for (one, other, same) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(group(one) == group(other), same, "{one} and {other}");
        }
        assert_eq!(Group::of(None), Group::of(None));
        assert_ne!(Group::of(None), group("127.0.0.1"));
    }

    #[test]
    fn a_group_with_more_than_half_is_found_and_one_with_half_is_not() {
        let letters = |text: &str| -> Option<(u64, usize)> {
            let groups: Vec<Group> = text.bytes().map(|b| Group(b.into())).collect();
            majority(groups.iter().copied()).map(|found| (found.group.0, found.count))
        };
        for (text, expected) in [
            ("", None),
            ("a", Some((b'a'.into(), 1))),
            ("ab", None),
            ("aab", Some((b'a'.into(), 2))),
            ("abab", None),
            ("babab", Some((b'b'.into(), 3))),
            ("abcabcaa", None),
            ("abcaabcaa", Some((b'a'.into(), 5))),
            ("bcdaaaa", Some((b'a'.into(), 4))),
        ] {
            assert_eq!(letters(text), expected, "{text}");
        }
    }

    #[test]
    fn an_equal_share_is_left_to_each_and_more_than_that_is_not() {
        let letters = |text: &'static str| text.bytes().map(|byte| Group(byte.into()));
        for (held, waiting, expected) in [
            ("", "a", &[][..]),
            ("a", "b", &[]),
            ("aaaa", "aa", &[]),
            ("aaaa", "b", &[('a', 2)]),
            ("aaab", "b", &[('a', 1)]),
            ("aabb", "b", &[]),
            // two of nearly half each, beside a third
            ("aaaabbbbc", "c", &[('a', 1), ('b', 1)]),
            ("aaaaaaaaabbbbbbbbbcc", "d", &[('a', 4), ('b', 4)]),
            ("aaaabbc", "d", &[('a', 2)]),
            ("aabbccdd", "e", &[]),
        ] {
            let found = above_equal_share(letters(held), letters(waiting));
            let found: Vec<(char, usize)> = found
                .iter()
                .map(|surplus| {
                    (
                        char::from(u8::try_from(surplus.group.0).unwrap()),
                        surplus.count,
                    )
                })
                .collect();
            assert_eq!(found, expected, "{held}, and {waiting} waits");
        }
    }

    #[test]
    fn behind_trusted_proxies_the_client_is_the_last_that_is_not_one() {
        let trusted = [parse_network("10.0.0.0/8").unwrap()];
        let peer = |text: &str| Some(text.parse().unwrap());
        for (from, head, expected) in [
            (
                peer("10.0.0.1"),
                "X-Forwarded-For: 1.2.3.4\r\n",
                Some("1.2.3.4"),
            ),
            (
                peer("10.0.0.1"),
                "x-forwarded-for: 9.9.9.9, 1.2.3.4, 10.1.1.1\r\n",
                Some("1.2.3.4"),
            ),
            (
                peer("10.0.0.1"),
                "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 1.2.3.4:55\r\n",
                Some("1.2.3.4"),
            ),
            (
                peer("10.0.0.1"),
                "X-Forwarded-For: [2001:db8::1]:4\r\n",
                Some("2001:db8::2"),
            ),
            (
                peer("10.0.0.1"),
                "X-Forwarded-For: 10.2.2.2\r\n",
                Some("10.2.2.2"),
            ),
            (
                peer("10.0.0.1"),
                "X-Forwarded-For: 1.2.3.4, unknown\r\n",
                None,
            ),
            (peer("10.0.0.1"), "Host: a\r\n", None),
            (peer("11.0.0.1"), "X-Forwarded-For: 1.2.3.4\r\n", None),
            (None, "X-Forwarded-For: 1.2.3.4\r\n", Some("1.2.3.4")),
        ] {
            let text = format!("GET / HTTP/1.1\r\n{head}\r\n");
            let fields = field_values(text.as_bytes(), b"x-forwarded-for");
            let found = Group::forwarded(from, &trusted, fields);
            assert_eq!(found, expected.map(group), "{from:?} {head}");
        }
    }
}
