//! Bytes as text.

/// Bytes as text, where they are UTF-8. Hosts and paths are almost always short and ASCII: the general check alone examines
/// short texts byte by byte.
pub fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { str::from_utf8_unchecked(bytes) });
    }
    str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_utf_8_is() {
        for len in 0..40 {
            for at in 0..len {
                for odd in [
                    &b"a"[..],
                    b"\x7f",
                    b"\x80",
                    b"\xff",
                    "ü".as_bytes(),
                    b"\xc3",
                ] {
                    let bytes = [&vec![b'-'; at], odd, &vec![b'-'; len - at]].concat();
                    assert_eq!(text(&bytes), str::from_utf8(&bytes).ok(), "{odd:?} at {at}");
                }
            }
        }
    }
}
