//! `strftime_now`, which templates call to tell the model the date.

use std::time::{SystemTime, UNIX_EPOCH};

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
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The time now, in UTC, by a format of Python's `strftime`; `Err` is a directive that is not known.
pub(super) fn now(format: &str) -> Result<String, char> {
    strftime(format, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()))
}

fn strftime(format: &str, seconds: u64) -> Result<String, char> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[((days + 3) % 7) as usize]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next().unwrap_or('%') {
            'Y' => out.push_str(&format!("{year:04}")),
            'y' => out.push_str(&format!("{:02}", year % 100)),
            'm' => out.push_str(&format!("{month:02}")),
            'd' => out.push_str(&format!("{day:02}")),
            'H' => out.push_str(&format!("{hour:02}")),
            'I' => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            'M' => out.push_str(&format!("{minute:02}")),
            'S' => out.push_str(&format!("{second:02}")),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'B' => out.push_str(month_name),
            'b' => out.push_str(&month_name[..3]),
            'A' => out.push_str(day_name),
            'a' => out.push_str(&day_name[..3]),
            '%' => out.push('%'),
            other => return Err(other),
        }
    }
    Ok(out)
}

/// Year, month (from 1) and day of a day since 1970 began, by the calendar that repeats every 400 years.
fn civil(days: u64) -> (u64, usize, u64) {
    // Counted from 1 March of the year 0, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are Python's.
    #[test]
    fn dates_as_python_writes_them() {
        for (seconds, format, want) in [
            (0, "%A, %d %B %Y %H:%M:%S", "Thursday, 01 January 1970 00:00:00"),
            (951_782_399, "%d %b %Y %I:%M %p", "28 Feb 2000 11:59 PM"),
            (951_782_400, "%Y-%m-%d %a", "2000-02-29 Tue"),
            (1_735_689_599, "%y%m%d 100%%", "241231 100%"),
            (1_735_689_600, "%d %b %Y", "01 Jan 2025"),
            (4_107_542_400, "%d %b %Y", "01 Mar 2100"),
        ] {
            assert_eq!(strftime(format, seconds).as_deref(), Ok(want));
        }
        assert_eq!(strftime("%Q", 0), Err('Q'));
    }
}
