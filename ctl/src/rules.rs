//! The rules by which an operator's process approves machines: what the file
//! says, checked before the first machine is looked at.
//!
//! Pure: the text comes in as an argument.

use std::collections::BTreeMap;
use std::ops::Range;

use edge::exit::Failure;
use edge::toml_file;
use jiff::SignedDuration;
use model::machine::{DiskContent, MachineFacts};
use model::{CustomerName, MacAddr, ReleaseVersion, UnitName};
use serde::Deserialize;
use toml::Spanned;

use crate::birth::size;

/// How long a ticket may be used where its rule does not say.
const VALID: SignedDuration = SignedDuration::from_hours(1);

/// The rules in their order: the first that fits a machine decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Rule>);

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What it is called when its decisions are told.
    pub(crate) name: String,
    /// The one machine that is meant.
    pub(crate) serial: Option<String>,
    /// What the machine must be.
    wanted: Wanted,
    /// What it becomes.
    pub(crate) becomes: Becomes,
    /// Which of its disks is erased.
    pub(crate) disk: DiskRule,
    /// What may be on that disk.
    pub(crate) erase: Erase,
    /// The release; else the one that the unit's channel offers.
    pub(crate) release: Option<ReleaseVersion>,
    /// How long the ticket may be used.
    pub(crate) valid: SignedDuration,
}

/// What a machine must be. All that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    product: Option<String>,
    macs: Vec<MacPrefix>,
    least_disk: Option<u64>,
    empty_disks: bool,
    tpm: Option<bool>,
    secure_boot: Option<bool>,
}

/// What a machine becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// This unit.
    Unit(UnitName),
    /// The next unit of this list that has no machine.
    Next(Vec<UnitPattern>),
}

/// A unit's name, or a pattern of names of one customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitPattern {
    customer: CustomerName,
    name: String,
}

impl UnitPattern {
    /// Whether `unit` is meant.
    pub(crate) fn fits(&self, unit: &UnitName) -> bool {
        self.customer == *unit.customer() && glob(&self.name, unit.name())
    }
}

impl std::fmt::Display for UnitPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.customer.as_str(), self.name)
    }
}

/// Which disk is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskRule {
    /// The smallest fixed one of at least this size.
    Smallest(u64),
    /// The one with this serial or path.
    Named(String),
    /// The only fixed one in this range of sizes.
    Size(u64, u64),
    /// The two smallest fixed ones of like size and of at least this size, as mirrors.
    Mirrored(u64),
}

/// Which data may be erased. An empty disk always may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Erase {
    /// Data that is not ours.
    pub(crate) foreign: bool,
    /// The data of a unit.
    pub(crate) unit: bool,
}

/// The first bytes of a MAC address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MacPrefix(Vec<u8>);

impl MacPrefix {
    fn parse(text: &str) -> Option<Self> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|pair| match pair.len() {
                2 => u8::from_str_radix(pair, 16).ok(),
                _ => None,
            })
            .collect();
        bytes.filter(|bytes| bytes.len() <= 6).map(Self)
    }

    fn fits(&self, mac: MacAddr) -> bool {
        mac.0.starts_with(&self.0)
    }
}

/// Whether a rule is for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It is.
    Yes,
    /// It is for other machines.
    No(String),
    /// The rule means this machine by its serial, and the machine is not as the rule wants it.
    Not(String),
}

impl Rules {
    /// The rules in their order.
    pub(crate) fn all(&self) -> &[Rule] {
        &self.0
    }

    /// Whether a rule keeps `unit` for a machine with a certain serial.
    pub(crate) fn keeps(&self, unit: &UnitName) -> bool {
        self.0
            .iter()
            .any(|rule| matches!(&rule.becomes, Becomes::Unit(kept) if kept == unit))
    }
}

impl Rule {
    /// Whether the rule is for the machine, and if not why.
    pub(crate) fn fit(&self, facts: &MachineFacts) -> Fit {
        if let Some(serial) = &self.serial
            && facts.serial != *serial
        {
            return Fit::No(format!("is for serial {serial:?}"));
        }
        match (self.wanted.lacks(facts), &self.serial) {
            (None, _) => Fit::Yes,
            (Some(lack), None) => Fit::No(lack),
            (Some(lack), Some(_)) => Fit::Not(lack),
        }
    }
}

impl Wanted {
    /// The first thing that the machine is not, if there is one.
    fn lacks(&self, facts: &MachineFacts) -> Option<String> {
        let fixed = || facts.disks.iter().filter(|disk| !disk.removable);
        if let Some(product) = &self.product
            && !glob(product, &facts.product)
        {
            return Some(format!("wants product {product:?}"));
        }
        let fits = |prefix: &MacPrefix| facts.nics.iter().any(|nic| prefix.fits(nic.mac));
        if !self.macs.is_empty() && !self.macs.iter().any(fits) {
            return Some("wants another MAC address".into());
        }
        if let Some(least) = self.least_disk
            && !fixed().any(|disk| disk.size >= least)
        {
            return Some(format!("wants a fixed disk of at least {}", size(least)));
        }
        if self.empty_disks
            && let Some(used) = fixed().find(|disk| disk.content != DiskContent::Empty)
        {
            return Some(format!("wants empty disks, {} is not", used.path));
        }
        let word = |wanted: bool, one: &'static str, none: &'static str| {
            Some(if wanted { one } else { none }.to_owned())
        };
        match (self.tpm, self.secure_boot) {
            (Some(tpm), _) if facts.tpm != tpm => word(tpm, "wants a TPM", "wants no TPM"),
            (_, Some(boot)) if facts.secure_boot != boot => {
                word(boot, "wants Secure Boot", "wants no Secure Boot")
            }
            _ => None,
        }
    }
}

/// Whether `text` is as `pattern` says: `*` stands for any text, `?` for one character.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood, and how far it reaches by now.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, reach)) => {
                    *reach += 1;
                    (p, t) = (*at + 1, *reach);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    rule: Vec<Spanned<Raw>>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<String>,
    serial: Option<Spanned<String>>,
    product: Option<Spanned<String>>,
    mac: Option<Vec<Spanned<String>>>,
    least_disk: Option<Spanned<String>>,
    empty_disks: Option<bool>,
    tpm: Option<bool>,
    secure_boot: Option<bool>,
    unit: Option<Spanned<String>>,
    units: Option<Spanned<Vec<Spanned<String>>>>,
    disk: Option<Spanned<String>>,
    disk_size: Option<Spanned<[String; 2]>>,
    #[serde(default)]
    foreign_data: Data,
    #[serde(default)]
    unit_data: Data,
    release: Option<Spanned<String>>,
    valid: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Data {
    #[default]
    Keep,
    Erase,
}

/// Reads the rules of the file `name`.
///
/// # Errors
/// The first mistake, with its place and what would be right.
pub(crate) fn parse(text: &str, name: &str) -> Result<Rules, Failure> {
    let file: RawFile = toml_file::parse(text, name)?;
    let source = Source { text, name };
    if file.rule.is_empty() {
        let next = "begin one with [[rule]]; leapctl machine attend approves nothing by default";
        return Err(source.wrong(&(0..0), "there is no rule", next));
    }
    let mut rules = Vec::new();
    let mut serials: BTreeMap<String, String> = BTreeMap::new();
    let mut units: BTreeMap<UnitName, String> = BTreeMap::new();
    for (index, raw) in file.rule.iter().enumerate() {
        let rule = source.rule(index, raw)?;
        let twice = |what: String, first: &str| {
            let next = "no machine becomes two units, and no unit gets two machines";
            Err(source.wrong(
                &raw.span(),
                &format!("{what} stands in rule {first:?} already"),
                next,
            ))
        };
        if let Some(serial) = &rule.serial
            && let Some(first) = serials.insert(serial.clone(), rule.name.clone())
        {
            return twice(format!("serial {serial:?}"), &first);
        }
        if let Becomes::Unit(unit) = &rule.becomes
            && let Some(first) = units.insert(unit.clone(), rule.name.clone())
        {
            return twice(format!("unit {unit}"), &first);
        }
        rules.push(rule);
    }
    Ok(Rules(rules))
}

struct Source<'a> {
    text: &'a str,
    name: &'a str,
}

impl Source<'_> {
    fn wrong(&self, at: &Range<usize>, problem: &str, next: &str) -> Failure {
        toml_file::wrong(self.text, self.name, at, problem, next)
    }

    fn rule(&self, index: usize, spanned: &Spanned<Raw>) -> Result<Rule, Failure> {
        let raw = spanned.get_ref();
        let name = raw.name.clone().unwrap_or_else(|| format!("{}", index + 1));
        let serial = match &raw.serial {
            Some(serial) if serial.get_ref().trim().is_empty() => {
                let next = "a machine without a serial is found by product or mac";
                return Err(self.wrong(&serial.span(), "serial: is empty", next));
            }
            serial => serial.as_ref().map(|serial| serial.get_ref().clone()),
        };
        let wanted = self.wanted(raw)?;
        if serial.is_none() && wanted == Wanted::default() {
            let problem = format!("rule {name:?} names no machine");
            let next = "give serial, or some of product, mac, least_disk, empty_disks, tpm, \
                        secure_boot; product = \"*\" means every machine";
            return Err(self.wrong(&spanned.span(), &problem, next));
        }
        let (disk, becomes) = (self.disk(raw)?, self.becomes(spanned, &name)?);
        Ok(Rule {
            name,
            serial,
            wanted,
            becomes,
            disk,
            erase: Erase {
                foreign: raw.foreign_data == Data::Erase,
                unit: raw.unit_data == Data::Erase,
            },
            release: self.optional(&raw.release, "release", "expected a version like 2026.11.1")?,
            valid: match &raw.valid {
                None => VALID,
                Some(text) => crate::commands::duration(text.get_ref())
                    .map_err(|next| self.wrong(&text.span(), "valid: is no time span", &next))?,
            },
        })
    }

    fn optional<T: std::str::FromStr>(
        &self,
        text: &Option<Spanned<String>>,
        key: &str,
        next: &str,
    ) -> Result<Option<T>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let wrong = || self.wrong(&text.span(), &format!("{key}: {:?}", text.get_ref()), next);
        text.get_ref().parse().map(Some).map_err(|_| wrong())
    }

    fn wanted(&self, raw: &Raw) -> Result<Wanted, Failure> {
        let mut macs = Vec::new();
        for text in raw.mac.iter().flatten() {
            let prefix = MacPrefix::parse(text.get_ref()).ok_or_else(|| {
                let next = "expected the beginning of an address, like \"52:54:00\"";
                self.wrong(&text.span(), &format!("mac: {:?}", text.get_ref()), next)
            })?;
            macs.push(prefix);
        }
        let least_disk = match &raw.least_disk {
            None => None,
            Some(text) => Some(self.size(text.get_ref(), &text.span(), "least_disk")?),
        };
        Ok(Wanted {
            product: raw.product.as_ref().map(|text| text.get_ref().clone()),
            macs,
            least_disk,
            empty_disks: raw.empty_disks == Some(true),
            tpm: raw.tpm,
            secure_boot: raw.secure_boot,
        })
    }

    fn size(&self, text: &str, at: &Range<usize>, key: &str) -> Result<u64, Failure> {
        parse_size(text).ok_or_else(|| {
            let next = "expected a size like \"120 GiB\" or \"240 GB\"";
            self.wrong(at, &format!("{key}: {text:?}"), next)
        })
    }

    fn least(&self, raw: &Raw) -> Result<u64, Failure> {
        match &raw.least_disk {
            None => Ok(0),
            Some(text) => self.size(text.get_ref(), &text.span(), "least_disk"),
        }
    }

    fn disk(&self, raw: &Raw) -> Result<DiskRule, Failure> {
        match (&raw.disk, &raw.disk_size) {
            (Some(_), Some(size)) => {
                let next = "give disk, disk_size, or neither for the smallest one";
                Err(self.wrong(&size.span(), "disk_size: stands beside disk", next))
            }
            (None, None) => self.least(raw).map(DiskRule::Smallest),
            (Some(disk), None) if disk.get_ref() == "smallest" => {
                self.least(raw).map(DiskRule::Smallest)
            }
            (Some(disk), None) if disk.get_ref() == "mirrored" => {
                self.least(raw).map(DiskRule::Mirrored)
            }
            (Some(disk), None) if disk.get_ref().trim().is_empty() => {
                let next = "expected \"smallest\", \"mirrored\", a path or a serial";
                Err(self.wrong(&disk.span(), "disk: is empty", next))
            }
            (Some(disk), None) => Ok(DiskRule::Named(disk.get_ref().clone())),
            (None, Some(range)) => {
                let [least, most] = range.get_ref();
                let least = self.size(least, &range.span(), "disk_size")?;
                let most = self.size(most, &range.span(), "disk_size")?;
                if least > most {
                    let next = "expected the least size first, like [\"200 GB\", \"300 GB\"]";
                    return Err(self.wrong(&range.span(), "disk_size: no disk fits", next));
                }
                Ok(DiskRule::Size(least, most))
            }
        }
    }

    fn becomes(&self, spanned: &Spanned<Raw>, name: &str) -> Result<Becomes, Failure> {
        let raw = spanned.get_ref();
        match (&raw.serial, &raw.unit, &raw.units) {
            (Some(_), Some(unit), None) => {
                let parsed = unit.get_ref().parse();
                parsed.map(Becomes::Unit).map_err(|_| {
                    let problem = format!("unit: {:?}", unit.get_ref());
                    self.wrong(&unit.span(), &problem, "expected CUSTOMER/NAME")
                })
            }
            (None, None, Some(units)) => {
                let mut patterns = Vec::new();
                for text in units.get_ref() {
                    patterns.push(self.pattern(text)?);
                }
                if patterns.is_empty() {
                    let next = "give names or patterns like \"motivatit/houma-*\"";
                    return Err(self.wrong(&units.span(), "units: is empty", next));
                }
                Ok(Becomes::Next(patterns))
            }
            (serial, unit, units) => {
                let at = match (unit, units) {
                    (_, Some(units)) if serial.is_some() => units.span(),
                    (Some(unit), _) => unit.span(),
                    _ => spanned.span(),
                };
                let (problem, next) = match serial {
                    Some(_) => (
                        format!("rule {name:?} is for one machine and must name its unit"),
                        "give unit = \"CUSTOMER/NAME\", and no units",
                    ),
                    None => (
                        format!("rule {name:?} is for many machines and must name their units"),
                        "give units = [\"CUSTOMER/NAME\", \"CUSTOMER/PATTERN-*\"], and no unit",
                    ),
                };
                Err(self.wrong(&at, &problem, next))
            }
        }
    }

    fn pattern(&self, text: &Spanned<String>) -> Result<UnitPattern, Failure> {
        let wrong = |next: &str| {
            let problem = format!("units: {:?}", text.get_ref());
            self.wrong(&text.span(), &problem, next)
        };
        let expected = "expected CUSTOMER/NAME; NAME may have * and ?, CUSTOMER may not";
        let (customer, name) = text
            .get_ref()
            .split_once('/')
            .ok_or_else(|| wrong(expected))?;
        let customer: CustomerName = customer.parse().map_err(|_| wrong(expected))?;
        // What is left of a pattern without its marks must be fit for a name.
        let plain: String = name.replace(['*', '?'], "x");
        if format!("{}/{plain}", customer.as_str())
            .parse::<UnitName>()
            .is_err()
        {
            return Err(wrong(expected));
        }
        Ok(UnitPattern {
            customer,
            name: name.to_owned(),
        })
    }
}

/// Reads `120 GiB`, `240 GB` or `1 TB`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    digits.trim_end().parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
pub(crate) mod tests {
    use edge::exit::{Kind, render};

    use super::*;
    use crate::birth::tests::{disk, machine};

    pub(crate) fn rules(text: &str) -> Rules {
        parse(text, "rules.toml").unwrap()
    }

    #[test]
    fn a_file_of_rules_is_read_whole() {
        let rules = rules(
            "[[rule]]\nname = 'ordered'\nserial = 'S1'\nunit = 'motivatit/houma-1'\n\
             disk = '/dev/nvme0n1'\nrelease = '2026.11.1'\nvalid = '20m'\n\
             [[rule]]\nproduct = 'Dell*'\nmac = ['52:54:00', 'b8:ca']\nleast_disk = '120 GiB'\n\
             tpm = true\nunits = ['motivatit/houma-*']\nforeign_data = 'erase'\n",
        );
        let [one, many] = rules.all() else {
            panic!("two rules");
        };
        assert_eq!(one.name, "ordered");
        assert_eq!(one.disk, DiskRule::Named("/dev/nvme0n1".into()));
        assert_eq!(one.valid, SignedDuration::from_mins(20));
        assert_eq!((one.erase, many.name.as_str()), (Erase::default(), "2"));
        assert_eq!(many.disk, DiskRule::Smallest(120 << 30));
        assert!(many.erase.foreign && !many.erase.unit);
        assert!(rules.keeps(&"motivatit/houma-1".parse().unwrap()));
        assert!(!rules.keeps(&"motivatit/houma-2".parse().unwrap()));
    }

    #[test]
    fn a_mistake_is_told_with_its_place_and_what_would_be_right() {
        let table = [
            (
                "",
                "rules.toml:1:1: there is no rule",
                "begin one with [[rule]]",
            ),
            (
                "[[rule]]\nserail = 'S1'\n",
                "rules.toml:2:1: unknown field `serail`",
                "did you mean \"serial\"?",
            ),
            (
                "[[rule]]\nname = 'all'\nunits = ['a/b']\n",
                "rules.toml:1:1: rule \"all\" names no machine",
                "means every machine",
            ),
            (
                "[[rule]]\nserial = ' '\nunit = 'a/b'\n",
                "rules.toml:2:10: serial: is empty",
                "product or mac",
            ),
            (
                "[[rule]]\nserial = 'S1'\nunits = ['a/b']\n",
                "rules.toml:3:9: rule \"1\" is for one machine",
                "give unit =",
            ),
            (
                "[[rule]]\nproduct = '*'\nunit = 'a/b'\n",
                "rules.toml:3:8: rule \"1\" is for many machines",
                "give units =",
            ),
            (
                "[[rule]]\nproduct = '*'\nunits = ['*/b']\n",
                "rules.toml:3:10: units: \"*/b\"",
                "CUSTOMER may not",
            ),
            (
                "[[rule]]\nmac = ['52:54:0']\nunits = ['a/b']\n",
                "rules.toml:2:8: mac: \"52:54:0\"",
                "like \"52:54:00\"",
            ),
            (
                "[[rule]]\nleast_disk = '12 parsecs'\nunits = ['a/b']\n",
                "rules.toml:2:14: least_disk: \"12 parsecs\"",
                "120 GiB",
            ),
            (
                "[[rule]]\nproduct = '*'\nunits = ['a/b']\ndisk = 'D1'\ndisk_size = ['1GB', '2GB']\n",
                "rules.toml:5:13: disk_size: stands beside disk",
                "or neither",
            ),
            (
                "[[rule]]\nserial = 'S1'\nunit = 'a/b'\n[[rule]]\nserial = 'S1'\nunit = 'a/c'\n",
                "rules.toml:4:1: serial \"S1\" stands in rule \"1\" already",
                "two units",
            ),
            (
                "[[rule]]\nserial = 'S1'\nunit = 'a/b'\n[[rule]]\nserial = 'S2'\nunit = 'a/b'\n",
                "rules.toml:4:1: unit a/b stands in rule \"1\" already",
                "two machines",
            ),
            (
                "[[rule]]\nserial = 'S1'\nunit = 'a/b'\nforeign_data = 'wipe'\n",
                "rules.toml:4:16: unknown variant `wipe`",
                "",
            ),
        ];
        for (text, problem, next) in table {
            let failure = parse(text, "rules.toml").unwrap_err();
            assert_eq!(failure.kind(), Kind::InvalidInput, "{text}");
            let told = render(failure.error());
            assert!(told.contains(problem), "{text}\n{told}");
            assert!(told.contains(next), "{text}\n{told}");
        }
    }

    #[test]
    fn a_rule_fits_when_all_that_it_wants_holds() {
        let mut facts = machine("S1", vec![disk("/dev/vda", "D1", 200)]).facts;
        let fit = |what: &str, facts: &MachineFacts| {
            let text = format!("[[rule]]\n{what}\nunits = ['a/b']\n");
            rules(&text).all()[0].fit(facts)
        };
        for yes in [
            "product = 'QEMU*'",
            "product = '*PC'",
            "product = 'QEMU S?andard PC'",
            "mac = ['00:11', '52:54:00']",
            "least_disk = '200 GiB'",
            "empty_disks = true",
            "tpm = false",
            "secure_boot = false",
        ] {
            assert_eq!(fit(yes, &facts), Fit::Yes, "{yes}");
        }
        for no in [
            "product = 'QEMU'",
            "product = 'Dell*'",
            "mac = ['52:54:01']",
            "least_disk = '201 GiB'",
            "tpm = true",
            "secure_boot = true",
        ] {
            assert!(matches!(fit(no, &facts), Fit::No(_)), "{no}");
        }
        facts.disks[0].content = DiskContent::Leapserv;
        assert!(matches!(fit("empty_disks = true", &facts), Fit::No(_)));
        // A removable disk is never written, so what it holds does not matter.
        facts.disks[0].removable = true;
        assert_eq!(fit("empty_disks = true", &facts), Fit::Yes);
        assert!(matches!(fit("least_disk = '1 GiB'", &facts), Fit::No(_)));
        let serial = rules("[[rule]]\nserial = 'S1'\nunit = 'a/b'\ntpm = true\n");
        assert!(matches!(serial.all()[0].fit(&facts), Fit::Not(_)));
        facts.serial = "S2".into();
        assert!(matches!(serial.all()[0].fit(&facts), Fit::No(_)));
    }

    #[test]
    fn patterns_stay_within_their_customer() {
        let Becomes::Next(patterns) =
            &rules("[[rule]]\ntpm = true\nunits = ['a/x-*']\n").0[0].becomes
        else {
            panic!("patterns");
        };
        let fits = |unit: &str| patterns[0].fits(&unit.parse().unwrap());
        assert!(fits("a/x-1") && fits("a/x-10"));
        assert!(!fits("a/y-1") && !fits("b/x-1"));
    }
}
