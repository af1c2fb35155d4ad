//! Debian's control files: the stanzas of a package index.

use model::Digest;

/// One package version of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Package name.
    pub package: String,
    /// Version.
    pub version: String,
    /// Architecture, or `all`.
    pub architecture: String,
    /// SHA-256 of the `.deb`.
    pub sha256: Digest,
    /// The suite whose index this is.
    pub suite: String,
    /// The stanza as it stands, without the empty line behind it.
    pub stanza: String,
}

impl IndexEntry {
    /// The name under which apt keeps the downloaded file.
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.package, self.architecture)
    }

    /// The stanza with another file path in it.
    pub fn stanza_with_path(&self, path: &str) -> String {
        let lines = self.stanza.lines().map(|line| {
            if line.starts_with("Filename:") {
                format!("Filename: {path}\n")
            } else {
                format!("{line}\n")
            }
        });
        lines.collect()
    }
}

/// Returns the first value of a field in a stanza.
pub fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Splits a control file into its stanzas.
pub fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n")
        .map(|stanza| stanza.trim_matches('\n'))
        .filter(|stanza| !stanza.is_empty())
}

/// Reads a `Packages` file; stanzas that lack a field we need are left out.
pub fn parse_index(text: &str, suite: &str) -> Vec<IndexEntry> {
    stanzas(text)
        .filter_map(|stanza| {
            Some(IndexEntry {
                package: field(stanza, "Package")?.to_owned(),
                version: field(stanza, "Version")?.to_owned(),
                architecture: field(stanza, "Architecture")?.to_owned(),
                sha256: field(stanza, "SHA256")?.parse().ok()?,
                suite: suite.to_owned(),
                stanza: stanza.to_owned(),
            })
        })
        .collect()
}

/// A package that `apt-get --simulate install` would install.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// Package name.
    pub package: String,
    /// Version.
    pub version: String,
    /// Architecture.
    pub architecture: String,
}

/// Reads the `Inst` lines of a simulated installation:
/// `Inst udev (257.13-1 Debian:13.7/stable [amd64]) []`.
pub fn parse_simulation(text: &str) -> Vec<Planned> {
    let mut planned: Vec<Planned> = text
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("Inst ")?;
            let (package, rest) = rest.split_once(" (")?;
            let package = package.split(' ').next()?;
            let (inside, _) = rest.split_once(')')?;
            let (version, rest) = inside.split_once(' ')?;
            let architecture = rest.rsplit_once('[')?.1.trim_end_matches(']');
            Some(Planned {
                package: package.split(':').next()?.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
            })
        })
        .collect();
    planned.sort();
    planned.dedup();
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "Package: udev\nVersion: 1:257.13-1\nArchitecture: amd64\nDepends: libc6,\n libudev1\nFilename: pool/u/udev.deb\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\nPackage: broken\nVersion: 1\n";

    #[test]
    fn an_index_gives_its_complete_stanzas() {
        let entries = parse_index(INDEX, "trixie");
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].file_name(), "udev_1%3a257.13-1_amd64.deb");
        let moved = entries[0].stanza_with_path("./x.deb");
        assert!(moved.contains("Filename: ./x.deb\n") && moved.contains("\n libudev1\n"));
        assert!(!moved.contains("pool/"));
    }

    #[test]
    fn a_simulated_installation_is_read() {
        let text = "NOTE: This is only a simulation!\nInst libc6 (2.41-12+deb13u4 Debian:13.7/stable [amd64]) []\nInst gcc-14-base:amd64 (14.2.0-19 Debian:13.7/stable [amd64])\nInst tzdata [1] (2026a Debian:13.7/stable, Debian-Security:13/x [all])\nConf libc6 (2.41-12+deb13u4 Debian:13.7/stable [amd64])\n";
        let planned = parse_simulation(text);
        assert_eq!(planned.len(), 3);
        assert_eq!(planned[0].package, "gcc-14-base");
        assert_eq!(planned[1].version, "2.41-12+deb13u4");
        assert_eq!(planned[2].architecture, "all");
    }
}
