//! Times as the log and the health report write them (RFC 3339): UTC, without leap seconds.
//!
//! Pure: it formats a time that the caller passes in and reads no clock.

use std::{fmt, time::Duration};

/// A time since 1970 as `2026-11-23T05:12:00Z`; with a precision, as in `{:.3}`, as `2026-11-23T05:12:00.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date(pub Duration);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        match f.precision() {
            Some(_) => write!(f, ".{:03}Z", self.0.subsec_millis()),
            None => f.write_str("Z"),
        }
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, `civil_from_days`): years begin in March, so that the leap
/// day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_formatted_as_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (86_399, "1970-01-01T23:59:59Z"),
            (86_400, "1970-01-02T00:00:00Z"),
            (5_097_599, "1970-02-28T23:59:59Z"),
            (5_097_600, "1970-03-01T00:00:00Z"),
            (68_169_600, "1972-02-29T00:00:00Z"),
            (68_256_000, "1972-03-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (978_307_199, "2000-12-31T23:59:59Z"),
            (1_234_567_890, "2009-02-13T23:31:30Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            let date = Date(Duration::from_secs(seconds));
            assert_eq!(date.to_string(), expected);
        }
        let date = Date(Duration::from_micros(951_782_399_012_999));
        assert_eq!(format!("{date:.3}"), "2000-02-28T23:59:59.012Z");
    }

    #[test]
    fn days_follow_each_other_for_a_thousand_years() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..365_243 {
            assert_eq!(
                Date(Duration::from_secs(days * 86_400)).to_string(),
                format!("{year:04}-{month:02}-{day:02}T00:00:00Z")
            );
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + i32::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
