//! A page of numbers in Prometheus' text format 0.0.4.
//!
//! The page is built family by family, so that help and type stand once and
//! before the samples; names and labels are the program's own words, and what
//! comes from outside can stand in a label's value alone, where it is escaped.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::sync::{Mutex, PoisonError};

/// What the page is sent as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    families: BTreeSet<String>,
}

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number that goes up and down, for each set of labels.
    pub fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        self.family(name, help, "gauge", samples);
    }

    /// Adds a number that only rises, for each set of labels. Its name ends with `_total`.
    pub fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, help, "counter", samples);
    }

    /// Adds how often which amounts were seen.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let Counts {
            buckets,
            count,
            sum,
        } = histogram.counts();
        for (bound, seen) in histogram.bounds.iter().zip(buckets) {
            let bound = bound.to_string();
            self.line(&format!("{name}_bucket"), &[("le", &bound)], seen);
        }
        self.line(&format!("{name}_bucket"), &[("le", "+Inf")], count);
        self.line(&format!("{name}_sum"), &[], sum);
        self.line(&format!("{name}_count"), &[], count);
    }

    /// Returns the text.
    pub fn into_text(self) -> String {
        self.text
    }

    fn family<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        self.head(name, help, kind);
        for Sample(labels, value) in samples {
            self.line(name, &labels, value);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let first = self.families.insert(name.to_owned());
        assert!(first, "{name} stands twice on the page");
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// One number with its labels.
#[derive(Debug, Clone)]
pub struct Sample<'a>(pub Vec<(&'a str, &'a str)>, pub u64);

impl Sample<'_> {
    /// A number without labels.
    pub fn plain(value: u64) -> Self {
        Self(Vec::new(), value)
    }
}

/// How often which amounts were seen.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: Mutex<Counts>,
}

#[derive(Debug, Clone)]
struct Counts {
    /// How many were at most the bound.
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
}

impl Histogram {
    /// Nothing seen yet; `bounds` rise.
    pub fn new(bounds: &'static [u64]) -> Self {
        debug_assert!(bounds.is_sorted());
        Self {
            bounds,
            counts: Mutex::new(Counts {
                buckets: vec![0; bounds.len()],
                count: 0,
                sum: 0,
            }),
        }
    }

    /// Takes note of an amount.
    pub fn note(&self, amount: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (bound, seen) in self.bounds.iter().zip(&mut counts.buckets) {
            *seen += u64::from(amount <= *bound);
        }
        counts.count += 1;
        // A monster of a sample spoils the mean and must not end the process.
        counts.sum = counts.sum.saturating_add(amount);
    }

    fn counts(&self) -> Counts {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_format_says() {
        let mut page = Page::new();
        let samples = [
            Sample(vec![("state", "held")], 2),
            Sample(vec![("state", "a\"b\\c\nd"), ("by", "http")], 0),
        ];
        page.gauge("machines", "Machines by state.\nAll of \\them.", samples);
        page.counter("born_total", "Births.", [Sample::plain(3)]);
        let histogram = Histogram::new(&[10, 60]);
        for seconds in [5, 10, 11, 61, 600] {
            histogram.note(seconds);
        }
        page.histogram("birth_seconds", "How long.", &histogram);
        assert_eq!(
            page.into_text(),
            "# HELP machines Machines by state.\\nAll of \\\\them.\n\
             # TYPE machines gauge\n\
             machines{state=\"held\"} 2\n\
             machines{state=\"a\\\"b\\\\c\\nd\",by=\"http\"} 0\n\
             # HELP born_total Births.\n\
             # TYPE born_total counter\n\
             born_total 3\n\
             # HELP birth_seconds How long.\n\
             # TYPE birth_seconds histogram\n\
             birth_seconds_bucket{le=\"10\"} 2\n\
             birth_seconds_bucket{le=\"60\"} 3\n\
             birth_seconds_bucket{le=\"+Inf\"} 5\n\
             birth_seconds_sum 687\n\
             birth_seconds_count 5\n"
        );
    }
}
