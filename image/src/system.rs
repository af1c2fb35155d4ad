//! What a root file system does, as its files tell: units, sockets, programs
//! with privileges, users, modules. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::contents::{FileFact, FileTree};
use crate::erofs::Kind;

const ETC: &str = "etc/systemd/system/";
const USR: &str = "usr/lib/systemd/system/";

/// Units that start, each with who wants them.
pub fn enabled(tree: &FileTree) -> BTreeMap<String, String> {
    let masked = masked(tree);
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, fact) in &tree.files {
        let Kind::Link(target) = &fact.kind else {
            continue;
        };
        let Some(inner) = path.strip_prefix(ETC).or_else(|| path.strip_prefix(USR)) else {
            continue;
        };
        let (unit, reason) = match inner.split_once('/') {
            Some((folder, unit)) => {
                let wanted = ["wants", "requires", "upholds"]
                    .into_iter()
                    .find_map(|how| Some((folder.strip_suffix(how)?.strip_suffix('.')?, how)));
                let Some((target, how)) = wanted else {
                    continue;
                };
                (unit, format!("{target} {how} it"))
            }
            // An alias that the recipe's choice has made; those that packages
            // bring below /usr are only names.
            None if path.starts_with(ETC) && target != "/dev/null" => {
                let unit = target.rsplit('/').next().unwrap_or(target);
                (unit, format!("as {inner}"))
            }
            None => continue,
        };
        if !masked.contains_key(unit) {
            found.entry(unit.to_owned()).or_default().insert(reason);
        }
    }
    let joined = |reasons: BTreeSet<String>| reasons.into_iter().collect::<Vec<_>>().join(", ");
    found
        .into_iter()
        .map(|(unit, reasons)| (unit, joined(reasons)))
        .collect()
}

/// Units that must never start.
pub fn masked(tree: &FileTree) -> BTreeMap<String, String> {
    let nothing = Kind::Link("/dev/null".to_owned());
    let units = tree.files.iter().filter(|(_, fact)| fact.kind == nothing);
    units
        .filter_map(|(path, _)| {
            let unit = path.strip_prefix(ETC).or_else(|| path.strip_prefix(USR))?;
            (!unit.contains('/')).then(|| (unit.to_owned(), String::new()))
        })
        .collect()
}

/// Sockets that the service manager listens on, with what they start.
pub fn sockets(tree: &FileTree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for unit in enabled(tree).into_keys() {
        let Some(name) = unit.strip_suffix(".socket") else {
            continue;
        };
        let mut listens: Vec<(String, String)> = Vec::new();
        let mut service = None;
        let mut accept = false;
        for text in unit_texts(tree, &unit) {
            for (key, value) in section(text, "[Socket]") {
                match key {
                    "Service" => service = Some(value.to_owned()),
                    "Accept" => accept = matches!(value, "yes" | "true" | "on" | "1"),
                    _ => {}
                }
                let Some(how) = key.strip_prefix("Listen") else {
                    continue;
                };
                // An empty value takes back all that was said before.
                if value.is_empty() {
                    listens.clear();
                } else {
                    listens.push((how.to_lowercase(), value.to_owned()));
                }
            }
        }
        let service = match (service, accept) {
            (Some(service), _) => service,
            (None, true) => format!("{name}@.service"),
            (None, false) => format!("{name}.service"),
        };
        for (how, place) in listens {
            found.insert(format!("{how} {place}"), format!("{service} by {unit}"));
        }
    }
    found
}

/// The unit's own file, then what is dropped in, in the service manager's order.
fn unit_texts<'a>(tree: &'a FileTree, unit: &str) -> Vec<&'a str> {
    // An instance is described by its template.
    let template = unit.split_once('@').map(|(name, rest)| {
        let (_, suffix) = rest.rsplit_once('.').unwrap_or((rest, ""));
        format!("{name}@.{suffix}")
    });
    let names = [Some(unit.to_owned()), template];
    let mut texts = Vec::new();
    let own = names.iter().flatten().find_map(|name| {
        let text = |folder: &str| tree.texts.get(&format!("{folder}{name}"));
        text(ETC).or_else(|| text(USR))
    });
    texts.extend(own.map(String::as_str));
    let mut dropped = BTreeMap::new();
    // What stands in /etc replaces what has the same name in /usr.
    for folder in [USR, ETC] {
        for name in names.iter().flatten() {
            let prefix = format!("{folder}{name}.d/");
            for (path, text) in tree.texts.range(prefix.clone()..) {
                match path.strip_prefix(&prefix) {
                    Some(file) => dropped.insert(file, text.as_str()),
                    None => break,
                };
            }
        }
    }
    texts.extend(dropped.into_values());
    texts
}

fn section<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    text.lines()
        .map(str::trim)
        .skip_while(|line| *line != name)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with(['#', ';']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

/// Files that give whoever runs them more than they have: setuid, setgid, capabilities.
pub fn privileged(tree: &FileTree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, fact) in &tree.files {
        let mut gives = Vec::new();
        if fact.kind == Kind::File && fact.mode & 0o4000 != 0 {
            gives.push(format!("setuid {}", owner(tree, fact)));
        }
        if fact.kind == Kind::File && fact.mode & 0o2000 != 0 {
            gives.push(format!("setgid {}", fact.gid));
        }
        if let Some(value) = fact.attributes.get("security.capability") {
            gives.push(capabilities(value));
        }
        if !gives.is_empty() {
            found.insert(format!("/{path}"), gives.join(", "));
        }
    }
    found
}

fn owner(tree: &FileTree, fact: &FileFact) -> String {
    let number = fact.uid.to_string();
    let passwd = tree.texts.get("etc/passwd");
    let name = passwd
        .into_iter()
        .flat_map(|text| text.lines())
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(&number)).then(|| name.to_owned())
        });
    name.unwrap_or(number)
}

const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The capabilities of a file's attribute `security.capability`, by name.
fn capabilities(value: &[u8]) -> String {
    let word = |at: usize| {
        let field = value
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok());
        u64::from(u32::from_le_bytes(field.unwrap_or_default()))
    };
    // Version 1 has one word for each set; 2 and 3 have two.
    let high = if word(0) >> 24 == 1 { 0 } else { word(12) };
    let permitted = word(4) | high << 32;
    let names = CAPABILITIES.iter().enumerate();
    let names: Vec<String> = names
        .filter(|(bit, _)| permitted >> bit & 1 == 1)
        .map(|(_, name)| format!("cap_{name}"))
        .collect();
    match names.as_slice() {
        [] => format!("capabilities {}", hex::encode(value)),
        names => names.join(" "),
    }
}

/// Users with number, home and shell.
pub fn users(tree: &FileTree) -> BTreeMap<String, String> {
    let passwd = tree.texts.get("etc/passwd");
    let lines = passwd.into_iter().flat_map(|text| text.lines());
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else {
                return None;
            };
            Some((name.to_owned(), format!("{uid}:{gid} {home} {shell}")))
        })
        .collect()
}

/// Kernel modules by their place below the kernel's folder, without its version.
pub fn modules(tree: &FileTree) -> BTreeMap<String, String> {
    tree.files
        .keys()
        .filter_map(|path| {
            let inner = path.strip_prefix("usr/lib/modules/")?;
            let (_, module) = inner.split_once('/')?;
            let file = module.rsplit('/').next().unwrap_or(module);
            file.contains(".ko")
                .then(|| (module.to_owned(), String::new()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::tests::tree;

    #[test]
    fn enabled_units_are_those_that_something_wants_and_nothing_masks() {
        let tree = tree();
        let enabled = enabled(&tree);
        assert_eq!(enabled["ssh.socket"], "sockets.target wants it");
        assert_eq!(enabled["dbus-broker.service"], "as dbus.service");
        assert!(!enabled.contains_key("getty@tty1.service"));
        assert_eq!(
            masked(&tree).into_keys().collect::<Vec<_>>(),
            ["getty@tty1.service"]
        );
    }

    #[test]
    fn a_socket_listens_where_its_file_and_what_is_dropped_in_say() {
        let mut tree = tree();
        assert_eq!(sockets(&tree)["stream 22"], "ssh.service by ssh.socket");
        tree.texts.insert(
            "etc/systemd/system/ssh.socket.d/port.conf".into(),
            "[Socket]\nListenStream=\nListenStream=2222\nAccept=yes\n".into(),
        );
        let sockets = sockets(&tree);
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets["stream 2222"], "ssh@.service by ssh.socket");
    }

    #[test]
    fn what_gives_privileges_is_named_with_them() {
        let privileged = privileged(&tree());
        assert_eq!(privileged["/usr/bin/su"], "setuid root");
        assert_eq!(privileged["/usr/bin/ping"], "cap_net_raw");
        assert_eq!(privileged.len(), 2);
    }
}
