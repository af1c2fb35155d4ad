//! Byte ranges of RFC 9110, section 14: one range, or the whole file.

/// What part of a file a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// `length` bytes from `offset` on; never empty.
    Range {
        /// The first byte.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// None of it: the range lies outside.
    Outside,
}

/// Reads a `Range` header for a file of `size` bytes.
///
/// A header that is malformed, of another unit or of several ranges is ignored,
/// as the RFC allows: the answer is the whole file.
pub fn part(header: &str, size: u64) -> Part {
    parse(header, size).unwrap_or(Part::Whole)
}

fn parse(header: &str, size: u64) -> Option<Part> {
    let (unit, range) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        // `parse` alone would take a sign.
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let length = number(last)?.min(size);
        return Some(match length {
            0 => Part::Outside,
            _ => Part::Range {
                offset: size - length,
                length,
            },
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    if first >= size {
        return Some(Part::Outside);
    }
    Some(Part::Range {
        offset: first,
        length: last.min(size - 1) - first + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let range = |offset, length| Part::Range { offset, length };
        assert_eq!(part("bytes=0-0", 10), range(0, 1));
        assert_eq!(part("bytes=2-5", 10), range(2, 4));
        assert_eq!(part("bytes=2-", 10), range(2, 8));
        assert_eq!(part("bytes=-3", 10), range(7, 3));
        assert_eq!(part("bytes=-30", 10), range(0, 10));
        assert_eq!(part("bytes=9-99999999999999999999999", 10), range(9, 1));
        assert_eq!(
            part("Bytes = 1-1", 10),
            Part::Range {
                offset: 1,
                length: 1
            }
        );
    }

    #[test]
    fn a_range_outside_is_told_from_a_malformed_one() {
        assert_eq!(part("bytes=10-", 10), Part::Outside);
        assert_eq!(part("bytes=-0", 10), Part::Outside);
        assert_eq!(part("bytes=0-", 0), Part::Outside);
        for ignored in [
            "bytes=5-2",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            "0-1",
            "bytes=-",
            "",
        ] {
            assert_eq!(part(ignored, 10), Part::Whole, "{ignored}");
        }
    }
}
