//! Dates for templates that print the current one.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The year, month and day of a number of days since 1970-01-01.
/// Source: H. Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let doe = shifted.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month as usize, doy - (153 * mp + 2) / 5 + 1)
}

/// Python's `strftime` in UTC for the directives that templates use; the error is an unknown directive.
pub(super) fn strftime(seconds: u64, format: &str) -> std::result::Result<String, String> {
    let days = (seconds / 86_400) as i64;
    let (year, month, day) = civil_from_days(days);
    let hour = seconds / 3600 % 24;
    let minute = seconds / 60 % 60;
    let second = seconds % 60;
    let name = MONTHS[(month - 1) % 12];
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(character) = chars.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('%') => out.push('%'),
            other => return Err(other.map_or_else(|| "%".into(), |character| format!("%{character}"))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %y %I %p %%";
        assert_eq!(strftime(0, all).unwrap(), "1970-01-01 00:00:00 Thu Thursday Jan January 70 12 AM %");
        // 2024-02-29 23:59:58 UTC, a Thursday.
        assert_eq!(strftime(1_709_251_198, "%d %b %Y %H:%M:%S %a").unwrap(), "29 Feb 2024 23:59:58 Thu");
        assert_eq!(strftime(0, "%Q"), Err("%Q".into()));
    }
}
