//! Numbers and switches as people write them.
//!
//! Pure: each function reads one scalar or says `None`; who asked knows what to say of it.

/// What a number counts; decides what is said of `30s` and `64KB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Things.
    Plain,
}

/// `true`, `false` and the words that YAML 1.1 and people use for them.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The same, and `1` and `0` as variables have it.
pub fn boolean_or_digit(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => boolean(text),
    }
}

/// Plain decimal notation only: neither `1e3` nor `inf` nor `007`.
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

/// The number to write for `30s`, `1m30s` or `64KiB`, and what it counts.
pub fn without_unit(text: &str, unit: Unit) -> Option<(f64, &'static str)> {
    let (factor, what): (fn(&str) -> Option<f64>, _) = match unit {
        Unit::Seconds => (seconds_of, "seconds"),
        Unit::Bytes => (bytes_of, "bytes"),
        Unit::Plain => return None,
    };
    let mut sum = 0.0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let after = after.trim_start();
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (name, after) = after.split_at_checked(end)?;
        sum += decimal(number)? * factor(name.trim_end())?;
        rest = after;
    }
    Some((sum, what))
}

fn seconds_of(name: &str) -> Option<f64> {
    Some(match name.to_ascii_lowercase().as_str() {
        "ms" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    })
}

/// KB is 1000, KiB is 1024.
fn bytes_of(name: &str) -> Option<f64> {
    Some(match name.to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "ki" | "kib" => 1024.0,
        "mi" | "mib" => 1_048_576.0,
        "gi" | "gib" => 1_073_741_824.0,
        _ => return None,
    })
}

/// Go's notation: digits, then nothing, `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub fn binary_bytes(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Three octal digits that are seen to be so by what stands before them: `0660` or `0o660`.
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
    fn the_number_to_write() {
        let cases = [
            ("30s", Unit::Seconds, Some(30.0)),
            ("1.5 min", Unit::Seconds, Some(90.0)),
            ("1h30m", Unit::Seconds, Some(5400.0)),
            ("250ms", Unit::Seconds, Some(0.25)),
            ("30", Unit::Seconds, None),
            ("30x", Unit::Seconds, None),
            ("s", Unit::Seconds, None),
            ("", Unit::Seconds, None),
            ("64KB", Unit::Bytes, Some(64000.0)),
            ("64KiB", Unit::Bytes, Some(65536.0)),
            ("64k", Unit::Bytes, Some(64000.0)),
            ("1 MiB", Unit::Bytes, Some(1_048_576.0)),
            ("2m", Unit::Bytes, Some(2_000_000.0)),
            ("1GB", Unit::Bytes, Some(1e9)),
            ("10k", Unit::Plain, None),
            ("9é", Unit::Bytes, None),
        ];
        for (text, unit, number) in cases {
            let read = without_unit(text, unit).map(|(number, _)| number);
            assert_eq!(read, number, "{text} {unit:?}");
        }
    }

    #[test]
    fn bytes_in_gos_notation() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1B", Some(1)),
            ("10MiB", Some(10 << 20)),
            ("2TiB", Some(2 << 40)),
            ("", None),
            ("MiB", None),
            ("10MB", None),
            ("1.5GiB", None),
            ("-1", None),
            ("10 MiB", None),
            ("99999999999TiB", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(binary_bytes(text), bytes, "{text}");
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
