//! Numbers, times, sizes and booleans in the notations that people use.
//!
//! Pure: each function parses one scalar or returns `None`; the message is the caller's.

/// What a number counts, which decides the units that may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A count, without a unit.
    Plain,
}

/// `true`, `false` and YAML 1.1's words for them.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Like [`boolean`], and `1` and `0`, which are usual in environment variables.
pub fn boolean_or_digit(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => boolean(text),
    }
}

/// A number in plain decimal notation: not `1e3`, `inf` or `007`.
pub fn decimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    (plain(whole) && plain(fraction) && !leading_zero)
        .then(|| text.parse().ok())
        .flatten()
        .filter(|number: &f64| number.is_finite())
}

/// Seconds: a plain number, or a duration as in Go: `500ms`, `30s`, `1m30s`. Days (`d`) and the long names of units are
/// accepted too.
pub fn seconds(text: &str) -> Option<f64> {
    if let Some(number) = decimal(text) {
        return Some(number);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut sum = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, name, after) = split_unit(rest)?;
        sum += number * seconds_of(name)?;
        rest = after;
    }
    Some(sign * sum)
}

/// Bytes: a plain number, or a size such as `64KiB`, `10MB` or `1.5GiB`, rounded to a whole byte. `KB` is 1000 and `KiB`
/// is 1024; a bare `K`, `M`, `G` or `T` is 1024 and its powers, as in docker and systemd.
pub fn bytes(text: &str) -> Option<f64> {
    if let Some(number) = decimal(text) {
        return Some(number);
    }
    let (sign, size) = match text.strip_prefix('-') {
        Some(size) => (-1.0, size),
        None => (1.0, text),
    };
    let (number, name, after) = split_unit(size)?;
    let bytes = number * bytes_of(name)?;
    after.is_empty().then_some((sign * bytes).round())
}

/// Splits a text into a number without a sign, its unit, and the rest, which begins with the next number.
fn split_unit(text: &str) -> Option<(f64, &str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at_checked(end)?;
    let rest = rest.trim_start_matches(' ');
    let end = rest
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(rest.len());
    let (name, after) = rest.split_at_checked(end)?;
    Some((decimal(number)?, name.trim_end_matches(' '), after))
}

fn seconds_of(name: &str) -> Option<f64> {
    Some(match name {
        "ns" => 1e-9,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
        "ms" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    })
}

fn bytes_of(name: &str) -> Option<f64> {
    Some(match name.to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "ki" | "kib" => 1024.0,
        "m" | "mi" | "mib" => 1_048_576.0,
        "g" | "gi" | "gib" => 1_073_741_824.0,
        "t" | "ti" | "tib" => 1_099_511_627_776.0,
        _ => return None,
    })
}

/// Three octal digits after a prefix that marks them as octal: `0660` or `0o660`.
pub fn octal_mode(text: &str) -> Option<u32> {
    text.strip_prefix("0o")
        .or_else(|| text.strip_prefix('0'))
        .filter(|digits| digits.len() == 3 && digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_decimals_only() {
        let good = [
            ("0", 0.0),
            ("10", 10.0),
            ("-1", -1.0),
            ("+2", 2.0),
            ("0.5", 0.5),
            ("10.0", 10.0),
        ];
        for (text, number) in good {
            assert_eq!(decimal(text), Some(number), "{text}");
        }
        for text in [
            "", "-", ".", "1.", ".5", "007", "1e3", "inf", "nan", "0x1", "1_000", " 1", "--1",
        ] {
            assert_eq!(decimal(text), None, "{text}");
        }
        assert_eq!(decimal(&"9".repeat(400)), None);
    }

    #[test]
    fn durations_as_in_go() {
        let cases = [
            ("30", Some(30.0)),
            ("0.25", Some(0.25)),
            ("30s", Some(30.0)),
            ("1.5 min", Some(90.0)),
            ("1.5h", Some(5400.0)),
            ("1h30m", Some(5400.0)),
            ("1m30s", Some(90.0)),
            ("1m 30s", Some(90.0)),
            ("1m30.5s", Some(90.5)),
            ("250ms", Some(0.25)),
            ("500000us", Some(0.5)),
            ("500000\u{b5}s", Some(0.5)),
            ("1d", Some(86400.0)),
            ("-1s", Some(-1.0)),
            ("-1", Some(-1.0)),
            ("+2s", Some(2.0)),
            ("0s", Some(0.0)),
            ("30x", None),
            ("30S", None),
            ("1M", None),
            ("1m30", None),
            ("1m-30s", None),
            ("--1s", None),
            ("s", None),
            ("-", None),
            (".5s", None),
            ("010s", None),
            ("1e3s", None),
            ("", None),
            (" ", None),
            ("9\u{e9}", None),
        ];
        for (text, number) in cases {
            assert_eq!(seconds(text), number, "{text}");
        }
    }

    #[test]
    fn sizes_with_units() {
        let cases = [
            ("4096", Some(4096.0)),
            ("1.5", Some(1.5)),
            ("64KB", Some(64000.0)),
            ("64KiB", Some(65536.0)),
            ("64K", Some(65536.0)),
            ("64k", Some(65536.0)),
            ("1 MiB", Some(1_048_576.0)),
            ("10M", Some(10_485_760.0)),
            ("10m", Some(10_485_760.0)),
            ("10MB", Some(1e7)),
            ("10Mi", Some(10_485_760.0)),
            ("1.5GiB", Some(1_610_612_736.0)),
            ("2.3MB", Some(2_300_000.0)),
            ("1GB", Some(1e9)),
            ("2T", Some(2_199_023_255_552.0)),
            ("7B", Some(7.0)),
            ("-1K", Some(-1024.0)),
            ("1MiB512KiB", None),
            ("64KiBs", None),
            ("64X", None),
            ("MiB", None),
            ("", None),
            ("9\u{e9}", None),
        ];
        for (text, number) in cases {
            assert_eq!(bytes(text), number, "{text}");
        }
    }

    #[test]
    fn modes_begin_with_a_zero() {
        for (text, mode) in [
            ("0660", Some(0o660)),
            ("0o007", Some(0o7)),
            ("660", None),
            ("0o0660", None),
            ("00660", None),
            ("066", None),
            ("0688", None),
            ("0+66", None),
            ("", None),
        ] {
            assert_eq!(octal_mode(text), mode, "{text}");
        }
    }
}
