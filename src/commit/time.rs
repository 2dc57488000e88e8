//! When an image was made, as it says itself.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in an image: it is shown as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(SystemTime);

/// What is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time: give seconds since 1970")]
pub struct TimestampError(String);

/// The last second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

impl Timestamp {
    /// The present, to the nanosecond.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }

    /// So many seconds since 1970, as `SOURCE_DATE_EPOCH` has them.
    ///
    /// # Errors
    /// When it is not a number, or beyond the year 9999.
    pub fn parse(seconds: &str) -> Result<Self, TimestampError> {
        let parsed = seconds
            .trim()
            .parse()
            .ok()
            .filter(|seconds| *seconds <= LAST);
        let since = parsed.map(Duration::from_secs);
        let time = since.and_then(|since| UNIX_EPOCH.checked_add(since));
        time.map(Self)
            .ok_or_else(|| TimestampError(seconds.to_owned()))
    }

    /// The moment that the environment variable `SOURCE_DATE_EPOCH` names, if it is set.
    ///
    /// # Errors
    /// When it is set to something else.
    pub fn from_environment() -> Result<Option<Self>, TimestampError> {
        match std::env::var_os("SOURCE_DATE_EPOCH") {
            Some(value) if !value.is_empty() => Self::parse(&value.to_string_lossy()).map(Some),
            _ => Ok(None),
        }
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> i64 {
        let since = self.0.duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as i64)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_seconds_since_1970() {
        let shown = |text: &str| Timestamp::parse(text).map(|time| time.to_string());
        assert_eq!(shown("0").as_deref(), Ok("1970-01-01T00:00:00Z"));
        assert_eq!(shown("1700000000").as_deref(), Ok("2023-11-14T22:13:20Z"));
        assert_eq!(shown("253402300799").as_deref(), Ok("9999-12-31T23:59:59Z"));
        for wrong in [
            "",
            "-1",
            "soon",
            "1.5",
            "253402300800",
            "99999999999999999999",
        ] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_present_has_nanoseconds() {
        let now = Timestamp::now().to_string();
        assert!(now.ends_with('Z') && now.starts_with("20"), "{now}");
    }
}
