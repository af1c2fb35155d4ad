//! What a request for a composed disk gets. Pure: no socket and no disk.
//!
//! The validator of a disk is its identity, which is known without reading it.
//! So `If-Range` and `If-None-Match` can be answered at once, and a client can
//! go on with a broken download on another day and from another server.

use std::ops::Range;
use std::str::FromStr;

use model::{CustomerName, Digest, UnitName};

/// Whose disk a request names: `/disk/CUSTOMER.raw` or `/disk/CUSTOMER/UNIT.raw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPath {
    /// The customer.
    pub customer: CustomerName,
    /// One unit of it, whose disk has GUIDs of its own.
    pub unit: Option<UnitName>,
}

/// A path that names no disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no disk {0:?}: expected /disk/CUSTOMER.raw or /disk/CUSTOMER/UNIT.raw")]
pub struct NotADisk(String);

impl FromStr for DiskPath {
    type Err = NotADisk;

    fn from_str(path: &str) -> Result<Self, NotADisk> {
        let bad = || NotADisk(path.chars().take(200).collect());
        let name = path
            .strip_prefix("/disk/")
            .and_then(|rest| rest.strip_suffix(".raw"))
            .ok_or_else(bad)?;
        if name.contains('/') {
            let unit: UnitName = name.parse().map_err(|_| bad())?;
            return Ok(Self {
                customer: unit.customer().clone(),
                unit: Some(unit),
            });
        }
        Ok(Self {
            customer: name.parse().map_err(|_| bad())?,
            unit: None,
        })
    }
}

/// The headers of a request that decide what it gets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions<'a> {
    /// `Range`.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

/// What a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All of it: 200.
    Whole,
    /// One range: 206.
    Part(Range<u64>),
    /// The range lies outside: 416.
    Outside,
    /// The client has it: 304.
    NotModified,
}

/// Returns the entity tag of an identity.
pub fn etag(id: &Digest) -> String {
    format!("\"{id}\"")
}

impl Answer {
    /// Decides by RFC 9110 what a request for `size` bytes with this tag gets.
    ///
    /// One range is served; several, and what is not understood, give the whole.
    pub fn decide(conditions: Conditions<'_>, etag: &str, size: u64) -> Self {
        let known = conditions.if_none_match.is_some_and(|tags| {
            tags.split(',').map(str::trim).any(|tag| {
                // RFC 9110, 13.1.2: compared weakly.
                tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
            })
        });
        if known {
            return Self::NotModified;
        }
        // A date never holds: composed disks have none.
        if conditions.if_range.is_some_and(|tag| tag.trim() != etag) {
            return Self::Whole;
        }
        match conditions.range {
            Some(range) => part(range, size).unwrap_or(Self::Whole),
            None => Self::Whole,
        }
    }

    /// Returns the status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::Whole => 200,
            Self::Part(_) => 206,
            Self::NotModified => 304,
            Self::Outside => 416,
        }
    }

    /// Returns the bytes that the body has.
    pub fn body(&self, size: u64) -> Range<u64> {
        match self {
            Self::Whole => 0..size,
            Self::Part(range) => range.clone(),
            Self::Outside | Self::NotModified => 0..0,
        }
    }

    /// Returns the headers of the answer, but for those of the connection.
    pub fn headers(&self, etag: &str, size: u64) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("accept-ranges", "bytes".to_owned()),
            ("etag", etag.to_owned()),
        ];
        let body = self.body(size);
        if *self != Self::NotModified {
            headers.push(("content-type", "application/octet-stream".to_owned()));
            headers.push(("content-length", (body.end - body.start).to_string()));
        }
        match self {
            Self::Part(range) => {
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                headers.push(("content-range", text));
            }
            Self::Outside => headers.push(("content-range", format!("bytes */{size}"))),
            Self::Whole | Self::NotModified => {}
        }
        headers
    }
}

/// One range of bytes, where it is one.
fn part(text: &str, size: u64) -> Option<Answer> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than 64 bits hold is beyond any disk.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = (first.trim(), last.trim());
    let range = if first.is_empty() {
        size.saturating_sub(number(last)?)..size
    } else if last.is_empty() {
        number(first)?..size
    } else {
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        first..last.saturating_add(1).min(size)
    };
    Some(if range.start < range.end {
        Answer::Part(range)
    } else {
        Answer::Outside
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decide(range: Option<&str>, if_range: Option<&str>) -> Answer {
        let conditions = Conditions {
            range,
            if_range,
            if_none_match: None,
        };
        Answer::decide(conditions, "\"tag\"", 1000)
    }

    #[test]
    fn one_range_is_served_and_what_is_not_understood_gives_the_whole() {
        let part = |range| decide(Some(range), None);
        assert_eq!(part("bytes=0-0"), Answer::Part(0..1));
        assert_eq!(part("bytes=990-2000"), Answer::Part(990..1000));
        assert_eq!(part("bytes=10-"), Answer::Part(10..1000));
        assert_eq!(part("bytes=-10"), Answer::Part(990..1000));
        assert_eq!(
            part("bytes=-99999999999999999999999"),
            Answer::Part(0..1000)
        );
        for outside in [
            "bytes=1000-",
            "bytes=1000-1001",
            "bytes=-0",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(part(outside), Answer::Outside, "{outside}");
        }
        for whole in [
            "bytes=0-1,5-6",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "lines=1-2",
            "bytes=+1-2",
            "x",
        ] {
            assert_eq!(part(whole), Answer::Whole, "{whole}");
        }
    }

    #[test]
    fn a_range_of_another_disk_is_never_served() {
        let range = Some("bytes=0-9");
        assert_eq!(decide(range, Some("\"tag\"")), Answer::Part(0..10));
        for other in [
            "\"other\"",
            "W/\"tag\"",
            "Mon, 23 Nov 2026 00:00:00 GMT",
            "",
        ] {
            assert_eq!(decide(range, Some(other)), Answer::Whole, "{other}");
        }
    }

    #[test]
    fn who_has_it_is_not_sent_it_again() {
        let answer = |tags| {
            let conditions = Conditions {
                range: Some("bytes=0-9"),
                if_none_match: Some(tags),
                ..Conditions::default()
            };
            Answer::decide(conditions, "\"tag\"", 1000)
        };
        for tags in ["\"tag\"", "\"a\", \"tag\"", "*", "W/\"tag\""] {
            assert_eq!(answer(tags), Answer::NotModified, "{tags}");
        }
        assert_eq!(answer("\"a\""), Answer::Part(0..10));
    }

    #[test]
    fn a_path_names_a_customer_or_a_unit_and_nothing_else() {
        let path = |path: &str| path.parse::<DiskPath>();
        assert_eq!(path("/disk/acme.raw").unwrap().unit, None);
        let unit = path("/disk/acme/shop-1.raw").unwrap();
        assert_eq!(unit.unit.unwrap().to_string(), "acme/shop-1");
        for bad in [
            "/disk/.raw",
            "/disk/../x.raw",
            "/disk/a/b/c.raw",
            "/disk/acme",
            "/",
            "/disk/a/../b.raw",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_leave_the_disk(range in "(bytes=)?[0-9,\\- ]{0,30}", size in 1u64..) {
            let conditions = Conditions { range: Some(&range), ..Conditions::default() };
            let answer = Answer::decide(conditions, "\"tag\"", size);
            let body = answer.body(size);
            prop_assert!(body.start <= body.end && body.end <= size);
            drop(answer.headers("\"tag\"", size));
        }
    }
}
