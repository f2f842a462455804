//! The fields of a head: a flat list in their order.
//!
//! Pure. All names and values are in one buffer, usually the head that they were received in, and a vector holds their
//! positions: a head that is passed on takes two allocations whatever its size, and nothing is hashed. Repeated fields stay
//! repeated. Names are in lower case, here and in every look-up. Names and values are validated where they are parsed
//! ([`crate::http1`]) or configured, and not here.

use std::ops::Range;

/// The fields of a head or of a trailer section, in their order.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// Names and values, and the bytes between them.
    text: Vec<u8>,
    places: Vec<Place>,
}

/// The position of a field in its text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    name: (u32, u32),
    value: (u32, u32),
}

impl Place {
    /// A field with this name and this value.
    pub fn new(name: Range<usize>, value: Range<usize>) -> Place {
        // no head has 4 GiB
        let short = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Place {
            name: (short(name.start), short(name.end)),
            value: (short(value.start), short(value.end)),
        }
    }

    /// The name in its text, as it is written there.
    pub fn name(self, text: &[u8]) -> &[u8] {
        part(text, self.name)
    }

    /// The value in its text.
    pub fn value(self, text: &[u8]) -> &[u8] {
        part(text, self.value)
    }

    /// Where its line stands, if it is there as [`line`] writes it.
    fn line(self, text: &[u8]) -> Option<Range<usize>> {
        let (start, end) = (self.name.0 as usize, self.value.1 as usize + 2);
        let is_whole = self.value.0 == self.name.1 + 2
            && text.get(self.name.1 as usize..self.value.0 as usize) == Some(b": ")
            && text.get(self.value.1 as usize..end) == Some(b"\r\n");
        is_whole.then_some(start..end)
    }

    fn set_value(&mut self, value: Range<usize>) {
        self.value = Place::new(0..0, value).value;
    }

    fn has_name(self, text: &[u8], name: &[u8]) -> bool {
        (self.name.1 - self.name.0) as usize == name.len() && self.name(text) == name
    }
}

/// Changes a name to lower case, eight bytes at a time. `text` begins with it, and what is behind its `left` bytes stays as
/// it is.
fn lower(text: &mut [u8], mut left: usize) {
    let (words, rest) = text.as_chunks_mut::<8>();
    for word in words {
        let bytes = u64::from_le_bytes(*word);
        let letters = upper_case(bytes) >> 2;
        if left < 8 {
            *word = (bytes | letters & !(u64::MAX << (8 * left))).to_le_bytes();
            return;
        }
        *word = (bytes | letters).to_le_bytes();
        left -= 8;
    }
    rest.get_mut(..left)
        .unwrap_or_default()
        .make_ascii_lowercase();
}

/// The highest bit of each byte that is a letter in upper case is set, and no other bit.
fn upper_case(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES * 0x80;
    let ascii = word & !HIGH;
    // adding carries into the highest bit where a byte is at least that large, and never beyond it
    let least_a = ascii + ONES * u64::from(0x80 - b'A');
    let above_z = ascii + ONES * u64::from(0x7f - b'Z');
    least_a & !above_z & !word & HIGH
}

fn part(text: &[u8], (start, end): (u32, u32)) -> &[u8] {
    text.get(start as usize..end as usize).unwrap_or_default()
}

impl Fields {
    /// No fields.
    pub fn new() -> Fields {
        Fields::default()
    }

    /// No fields, with room for so many of them and their bytes.
    pub fn with_capacity(count: usize, bytes: usize) -> Fields {
        Fields {
            text: Vec::with_capacity(bytes),
            places: Vec::with_capacity(count),
        }
    }

    /// The fields at these positions of a head; their names are changed to lower case.
    pub fn of(mut text: Vec<u8>, places: Vec<Place>) -> Fields {
        for place in &places {
            let (start, end) = place.name;
            let from_name = text.get_mut(start as usize..).unwrap_or_default();
            lower(from_name, (end - start) as usize);
        }
        Fields { text, places }
    }

    /// Names and values.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        let text = self.text.as_slice();
        self.places
            .iter()
            .map(move |place| (place.name(text), place.value(text)))
    }

    /// Names, and their values in `text`, which [`Fields::of`] was given a copy of.
    pub fn iter_in<'t>(&self, text: &'t [u8]) -> impl Iterator<Item = (&[u8], &'t [u8])> {
        let own = self.text.as_slice();
        self.places
            .iter()
            .map(move |place| (place.name(own), place.value(text)))
    }

    /// How many fields there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// The value of the first field of this name.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// The value of a field that occurs exactly once.
    pub fn only(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let mut values = self.get_all(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The values of all fields of this name.
    pub fn get_all(&self, name: impl AsRef<[u8]>) -> impl DoubleEndedIterator<Item = &[u8]> {
        let text = self.text.as_slice();
        self.places
            .iter()
            .filter(move |place| place.has_name(text, name.as_ref()))
            .map(move |place| place.value(text))
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// Appends a field.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = self.push(name.as_ref());
        let value = self.push(value.as_ref());
        self.places.push(Place::new(name, value));
    }

    /// Sets a field, at the position of the first of its name; the others of this name are removed.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        if !self.replace_first(name, &value) {
            return self.append(name, value);
        }
        let (text, mut is_first) = (self.text.as_slice(), true);
        self.places
            .retain(|place| !place.has_name(text, name) || std::mem::take(&mut is_first));
    }

    /// Replaces the value of the first field of this name, and leaves the others. Returns whether there is one.
    pub fn replace_first(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> bool {
        let (text, name) = (self.text.as_slice(), name.as_ref());
        let has_name = |place: &&mut Place| place.has_name(text, name);
        let Some(place) = self.places.iter_mut().find(has_name) else {
            return false;
        };
        let start = text.len();
        self.text.extend_from_slice(value.as_ref());
        place.set_value(start..self.text.len());
        true
    }

    /// Removes all fields of this name.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) {
        self.retain(|other, _| other != name.as_ref());
    }

    /// Removes the fields for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let text = self.text.as_slice();
        self.places
            .retain(|place| keep(place.name(text), place.value(text)));
    }

    /// Appends all fields as lines of a head.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_where(out, |_, _| true);
    }

    /// Appends as lines of a head the fields that pass. Lines that stand behind one another in the text as they are to be
    /// written are copied together.
    pub fn write_where(&self, out: &mut Vec<u8>, mut passes: impl FnMut(&[u8], &[u8]) -> bool) {
        let text = self.text.as_slice();
        let mut run = 0..0;
        for place in &self.places {
            let (name, value) = (place.name(text), place.value(text));
            if !passes(name, value) {
                continue;
            }
            match place.line(text) {
                Some(line) if line.start == run.end => run.end = line.end,
                found => {
                    out.extend_from_slice(text.get(run).unwrap_or_default());
                    run = found.unwrap_or_else(|| {
                        line(out, name, value);
                        0..0
                    });
                }
            }
        }
        out.extend_from_slice(text.get(run).unwrap_or_default());
    }

    fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        start..self.text.len()
    }
}

/// Appends one field line.
pub fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The members of a list that consists of the values of several fields, separated by commas (RFC 9110 §5.6.1).
pub fn members<'a>(values: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    values
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Extend<(N, V)> for Fields {
    /// Appends the fields.
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, fields: I) {
        for (name, value) in fields {
            self.append(name, value);
        }
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Fields {
        let mut list = Fields::new();
        list.extend(fields);
        list
    }
}

impl PartialEq for Fields {
    /// The same fields in the same order.
    fn eq(&self, other: &Fields) -> bool {
        self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, HOST, SET_COOKIE};

    use super::*;

    const HEAD: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nSet-Cookie:b\r\nX:  c \r\nset-cookie: d\r\nE:\r\n\r\n";

    fn fields() -> Fields {
        let places = [
            (16..20, 22..23),
            (25..35, 36..37),
            (39..40, 43..44),
            (47..57, 59..60),
            (62..63, 64..64),
        ];
        let places = places
            .into_iter()
            .map(|(name, value)| Place::new(name, value));
        Fields::of(HEAD.to_vec(), places.collect())
    }

    fn shown(fields: &Fields) -> String {
        let pair = |(name, value): (&[u8], &[u8])| {
            format!("{}={}", name.escape_ascii(), value.escape_ascii())
        };
        fields.iter().map(pair).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_are_changed_to_lower_case_byte_by_byte_and_nothing_else() {
        for len in 0..40 {
            for byte in 0..=255 {
                let name = vec![byte; len];
                let text = [&name[..], b": VALUE\r\n"].concat();
                let place = Place::new(0..len, len + 2..len + 7);
                let fields = Fields::of(text, vec![place]);
                let expected = (&*name.to_ascii_lowercase(), &b"VALUE"[..]);
                assert_eq!(fields.iter().next(), Some(expected), "{byte:#x}");
            }
        }
    }

    #[test]
    fn names_are_lower_case_and_repeated_fields_stay_apart() {
        let fields = fields();
        assert_eq!(shown(&fields), "host=a set-cookie=b x=c set-cookie=d e=");
        assert_eq!(fields.get(HOST), Some(&b"a"[..]));
        assert_eq!(fields.get("e"), Some(&b""[..]));
        assert_eq!(fields.get(ACCEPT), None);
        assert_eq!(fields.only("x"), Some(&b"c"[..]));
        assert_eq!(fields.only(SET_COOKIE), None);
        let cookies: Vec<_> = fields.get_all(SET_COOKIE).rev().collect();
        assert_eq!(cookies, [b"d", b"b"]);
        assert!(fields.contains("x") && !fields.contains("y"));
    }

    #[test]
    fn a_set_field_has_the_position_of_the_first_of_its_name() {
        let mut changed = fields();
        changed.set(SET_COOKIE, "new");
        assert_eq!(shown(&changed), "host=a set-cookie=new x=c e=");
        changed.set("e", "last");
        changed.set("y", "z");
        changed.set(HOST, "");
        assert_eq!(shown(&changed), "host= set-cookie=new x=c e=last y=z");
    }

    #[test]
    fn fields_are_appended_and_removed_by_name() {
        let mut changed = fields();
        changed.append(SET_COOKIE, "third");
        changed.remove("x");
        changed.remove("x");
        assert_eq!(
            shown(&changed),
            "host=a set-cookie=b set-cookie=d e= set-cookie=third"
        );
        changed.retain(|_, value| value.len() < 2);
        changed.extend([("u", "v"), ("e", "w")]);
        assert_eq!(
            shown(&changed),
            "host=a set-cookie=b set-cookie=d e= u=v e=w"
        );
        changed.remove("e");
        let mut out = Vec::new();
        changed.write(&mut out);
        let lines = b"host: a\r\nset-cookie: b\r\nset-cookie: d\r\nu: v\r\n";
        assert_eq!(out, lines);
    }

    #[test]
    fn lines_are_written_alike_however_they_came() {
        let mut changed = fields();
        changed.set("x", "new");
        let mut out = Vec::new();
        changed.write_where(&mut out, |name, value| name != b"host" && value != b"b");
        assert_eq!(out, b"x: new\r\nset-cookie: d\r\ne: \r\n");
        // each line of a head but one, and each value replaced
        let text = b"a: 1\r\nb: 2\r\nc: 3\r\n";
        let places = [0, 6, 12].map(|at| Place::new(at..at + 1, at + 3..at + 4));
        for left_out in [b"a", b"b", b"c", b"d"] {
            for replaced in ["a", "b", "c", "d"] {
                let mut fields = Fields::of(text.to_vec(), places.to_vec());
                fields.replace_first(replaced, "4");
                let (mut out, mut single) = (Vec::new(), Vec::new());
                fields.write_where(&mut out, |name, _| name != left_out);
                for (name, value) in fields.iter().filter(|(name, _)| name != left_out) {
                    line(&mut single, name, value);
                }
                assert_eq!(out, single);
            }
        }
    }

    #[test]
    fn a_line_that_is_not_as_ours_is_written_anew() {
        for text in [
            &b"a: 1\r\nb:\t2\r\nc: 3\r\n"[..],
            b"a: 1\r\nb: 2 \r\nc: 3\r\n",
            b"a: 1\r\nb: 2\nc: 3\r\n",
            b"a: 1\nb: 2\r\nc: 3\n",
        ] {
            let mut places = Vec::new();
            let mut at = 0;
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                places.push(Place::new(at..at + 1, at + 3..at + 4));
                at += line.len();
            }
            let mut out = Vec::new();
            Fields::of(text.to_vec(), places).write(&mut out);
            assert_eq!(out, b"a: 1\r\nb: 2\r\nc: 3\r\n", "{}", text.escape_ascii());
        }
    }

    #[test]
    fn equal_lists_have_the_same_fields_in_the_same_order() {
        let list = |fields: &[(&str, &str)]| fields.iter().copied().collect::<Fields>();
        let (mut one, other) = (fields(), list(&[("host", "a"), ("x", "c")]));
        one.retain(|name, _| name == b"host" || name == b"x");
        assert_eq!(one, other);
        assert_ne!(one, list(&[("x", "c"), ("host", "a")]));
        assert_ne!(one, list(&[("host", "a")]));
    }

    #[test]
    fn members_are_separated_by_commas_in_any_number_of_fields() {
        let values = [&b"a, b\t,,c d"[..], b"", b" ,e"];
        let all: Vec<_> = members(values.into_iter()).collect();
        assert_eq!(all, [&b"a"[..], b"b", b"c d", b"e"]);
    }

    #[test]
    fn a_position_has_sixteen_bytes() {
        assert_eq!(size_of::<Place>(), 16);
    }
}
