//! The build host's own package mirrors.
//!
//! No mirror is named in this repository: recipes name a suite, and the
//! addresses come from apt's configuration on the machine that builds.

use std::path::PathBuf;

use model::Architecture;

/// Where packages are fetched from. Hosts stay in here: no output of a build
/// names one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mirrors {
    /// Base addresses of Debian's archive.
    pub archive: Vec<String>,
    /// Base addresses of the archive of security updates.
    pub security: Vec<String>,
    /// Folder of the keyrings that sign their indexes; Debian's own when there is none.
    pub keyrings: Option<PathBuf>,
}

impl Mirrors {
    /// Reads apt's source lists: `(file name, text)` of each. Files ending in
    /// `.sources` have the deb822 form, all others one line for each source.
    pub fn from_sources(files: &[(String, String)]) -> Self {
        let mut mirrors = Self::default();
        for (name, text) in files {
            if name.ends_with(".sources") {
                mirrors.add_deb822(text);
            } else {
                mirrors.add_lines(text);
            }
        }
        mirrors
    }

    /// Takes one mirror that a person named, for both archives: the security
    /// archive is a sibling folder called `debian-security` by convention.
    pub fn from_address(address: &str) -> Self {
        let base = address.trim_end_matches('/');
        let security = base.strip_suffix("/debian").unwrap_or(base);
        Self {
            archive: vec![base.to_owned()],
            security: vec![format!("{security}/debian-security")],
            keyrings: None,
        }
    }

    /// Returns apt source lines for `suite` with its updates and security fixes,
    /// of `main` and further `areas` of the archive.
    pub fn lines(&self, suite: &str, architecture: Architecture, areas: &[String]) -> String {
        let areas: String = areas.iter().map(|area| format!(" {area}")).collect();
        let mut lines = String::new();
        let mut add = |address: &str, suite: &str| {
            lines.push_str(&format!(
                "deb [arch={architecture}] {address} {suite} main{areas}\n"
            ));
        };
        for address in &self.archive {
            add(address, suite);
            add(address, &format!("{suite}-updates"));
        }
        for address in &self.security {
            add(address, &format!("{suite}-security"));
        }
        lines
    }

    fn add_lines(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let Some(rest) = line.trim().strip_prefix("deb ") else {
                continue;
            };
            // Options stand in brackets: `deb [signed-by=/x] address suite …`.
            let rest = match rest.trim_start().strip_prefix('[') {
                Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
                None => rest,
            };
            let mut words = rest.split_whitespace();
            if let (Some(address), Some(suite)) = (words.next(), words.next()) {
                let components: Vec<&str> = words.collect();
                self.add(address, &[suite], &components);
            }
        }
    }

    fn add_deb822(&mut self, text: &str) {
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        for stanza in crate::control::stanzas(&text) {
            let words = |name: &str| -> Vec<&str> { values(stanza, name) };
            let enabled = !words("Enabled").contains(&"no");
            if !enabled || !words("Types").contains(&"deb") {
                continue;
            }
            for address in words("URIs") {
                self.add(address, &words("Suites"), &words("Components"));
            }
        }
    }

    fn add(&mut self, address: &str, suites: &[&str], components: &[&str]) {
        // Other vendors' archives have suites of their own names, or none of
        // Debian's folders.
        let scheme = [
            "http:",
            "https:",
            "file:",
            "copy:",
            "mirror+file:",
            "tor+http:",
        ];
        if !components.contains(&"main") || !scheme.iter().any(|s| address.starts_with(s)) {
            return;
        }
        let address = address.trim_end_matches('/').to_owned();
        let push = |list: &mut Vec<String>| {
            if !list.contains(&address) {
                list.push(address.clone());
            }
        };
        for suite in suites {
            let name = suite.split(['-', '/']).next().unwrap_or_default();
            if !SUITES.contains(&name) {
                continue;
            }
            if suite.contains("security") {
                push(&mut self.security);
            } else {
                push(&mut self.archive);
            }
        }
    }
}

/// Names of Debian's suites: they tell Debian's archive from other vendors'.
const SUITES: [&str; 9] = [
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
];

fn values<'a>(stanza: &'a str, name: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in stanza.lines() {
        if line.starts_with([' ', '\t']) {
            if inside {
                found.extend(line.split_whitespace());
            }
            continue;
        }
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        inside = key.eq_ignore_ascii_case(name);
        if inside {
            found.extend(value.split_whitespace());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Mirrors {
        Mirrors::from_sources(&[(name.to_owned(), text.to_owned())])
    }

    #[test]
    fn deb822_sources_give_their_debian_mirrors() {
        let text = "Types: deb\n# http://old.example/debian\nURIs: http://mirror.example/debian/\n http://second.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\nTypes: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n\nTypes: deb-src\nURIs: http://sources.example/debian\nSuites: bookworm\nComponents: main\n\nEnabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n";
        let mirrors = parse("debian.sources", text);
        assert_eq!(
            mirrors.archive,
            [
                "http://mirror.example/debian",
                "http://second.example/debian"
            ]
        );
        assert_eq!(mirrors.security, ["http://mirror.example/debian-security"]);
    }

    #[test]
    fn other_vendors_and_comments_are_left_out() {
        let text = "deb https://vendor.example/apt nodistro main\ndeb https://cloud.example/apt cloud-sdk main\n# deb http://off.example/debian trixie main\ndeb [signed-by=/x arch=amd64] http://mirror.example/debian trixie main contrib\ndeb-src http://mirror.example/debian trixie main\ndeb cdrom:[Debian]/ trixie main\n";
        let mirrors = parse("sources.list", text);
        assert_eq!(mirrors.archive, ["http://mirror.example/debian"]);
        assert!(mirrors.security.is_empty());
    }

    #[test]
    fn the_hosts_suite_is_replaced_by_the_recipes() {
        let mirrors = Mirrors {
            archive: vec!["http://m.example/debian".into()],
            security: vec!["http://m.example/debian-security".into()],
            keyrings: None,
        };
        assert_eq!(
            mirrors.lines("trixie", Architecture::Amd64, &[]),
            "deb [arch=amd64] http://m.example/debian trixie main\n\
             deb [arch=amd64] http://m.example/debian trixie-updates main\n\
             deb [arch=amd64] http://m.example/debian-security trixie-security main\n"
        );
        let areas = ["non-free-firmware".to_owned()];
        let lines = mirrors.lines("trixie", Architecture::Amd64, &areas);
        assert!(lines.contains("trixie-updates main non-free-firmware\n"));
    }

    #[test]
    fn one_named_mirror_serves_both_archives() {
        let mirrors = Mirrors::from_address("http://m.example/debian/");
        assert_eq!(mirrors.security, ["http://m.example/debian-security"]);
    }
}
