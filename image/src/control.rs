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

/// Reads what apt says about dependencies that cannot be satisfied: package and
/// reason, each in one line.
///
/// ```text
/// The following packages have unmet dependencies:
///  foo : Depends: bar (>= 2) but it is not installable
///        Depends: baz but it is not going to be installed
/// ```
pub fn parse_unmet(text: &str) -> Vec<(String, String)> {
    let lines = text
        .lines()
        .skip_while(|line| !line.contains("unmet dependencies"))
        .skip(1)
        .take_while(|line| line.starts_with(' '));
    let mut unmet: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (package, reason) = match line.split_once(" : ") {
            Some((package, reason)) => (package.trim().to_owned(), reason),
            None => match unmet.last() {
                Some((package, _)) => (package.clone(), line),
                None => continue,
            },
        };
        unmet.push((package, reason.trim().to_owned()));
    }
    unmet
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "Package: udev\nVersion: 1:257.13-1\nArchitecture: amd64\nDepends: libc6,\n libudev1\nFilename: pool/u/udev.deb\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\nPackage: broken\nVersion: 1\n";

    #[test]
    fn an_index_gives_its_complete_stanzas() {
        let entries = parse_index(INDEX, "trixie");
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].version, "1:257.13-1");
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

    #[test]
    fn unmet_dependencies_are_named_with_their_package() {
        let text = "Some packages could not be installed.\nThe following packages have unmet dependencies:\n foo : Depends: bar (>= 2) but it is not installable\n       Depends: baz but it is not going to be installed\n qux : Conflicts: foo\nE: Unable to correct problems\n";
        let unmet = parse_unmet(text);
        assert_eq!(unmet.len(), 3);
        assert_eq!(unmet[1].0, "foo");
        assert!(unmet[1].1.starts_with("Depends: baz"));
        assert_eq!(unmet[2].0, "qux");
        assert!(parse_unmet("fine\n").is_empty());
    }
}
