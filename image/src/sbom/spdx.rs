//! SPDX 2.3 as JSON.

use serde_json::{Value, json};

use super::{Bill, Role, crate_url, deb_url};

/// An SPDX identifier has letters, digits, `.` and `-` only; others become
/// their number between dots, so that different names stay different.
fn id(parts: &[&str]) -> String {
    let mut id = String::from("SPDXRef");
    for part in parts {
        id.push('-');
        for byte in part.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => id.push(char::from(byte)),
                byte => id.push_str(&format!(".{byte:02x}")),
            }
        }
    }
    id
}

fn sha256(digest: &model::Digest) -> Value {
    json!([{ "algorithm": "SHA256", "checksumValue": digest.to_string() }])
}

fn purl(locator: &str) -> Value {
    json!([{
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }])
}

/// Writes the bill down.
pub fn document(bill: &Bill) -> Value {
    let release = id(&["release"]);
    let mut packages = vec![json!({
        "SPDXID": release,
        "name": bill.name,
        "versionInfo": bill.version,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "comment": format!("dm-verity root hash {}", bill.root_hash),
    })];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", &release)];
    for package in &bill.packages {
        let locked = &package.locked;
        let part = locked.part.to_string();
        let id = id(&["deb", &part, &locked.package, &locked.architecture]);
        let mut entry = json!({
            "SPDXID": id,
            "name": locked.package,
            "versionInfo": locked.version,
            "supplier": "Organization: Debian",
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "checksums": sha256(&locked.sha256),
            "externalRefs": purl(&deb_url(locked, &bill.suite)),
            "comment": format!("part: {part}; suite: {}", locked.suite),
        });
        if let Some((name, version)) = &package.source {
            entry["sourceInfo"] =
                format!("built from Debian source package {name} {version}").into();
        }
        packages.push(entry);
        relationships.push(match package.role {
            Role::Content => relation(&release, "CONTAINS", &id),
            Role::Dependency => relation(&id, "BUILD_DEPENDENCY_OF", &release),
            // Programs of the initrds and the boot loader are copied out of them.
            Role::Tool => relation(&id, "BUILD_TOOL_OF", &release),
        });
    }
    for component in &bill.components {
        let id = id(&["component", &component.name]);
        packages.push(ours(
            &id,
            &component.name,
            &component.version,
            Some(&component.sha256),
        ));
        relationships.push(relation(&release, "CONTAINS", &id));
    }
    for program in &bill.programs {
        let place = program.component.as_deref().unwrap_or("root");
        let owner = match &program.component {
            Some(component) => self::id(&["component", component]),
            None => release.clone(),
        };
        let id = id(&["program", place, &program.name]);
        packages.push(ours(
            &id,
            &program.name,
            &program.version,
            Some(&program.sha256),
        ));
        relationships.push(relation(&owner, "CONTAINS", &id));
    }
    for one in &bill.crates {
        let id = id(&["cargo", &one.name, &one.version]);
        let mut entry = ours(&id, &one.name, &one.version, one.sha256.as_ref());
        entry["primaryPackagePurpose"] = "LIBRARY".into();
        entry["externalRefs"] = purl(&crate_url(one));
        packages.push(entry);
        // The lock of a workspace does not say which program has which crate.
        relationships.push(relation(&id, "DEPENDENCY_OF", &release));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{} {}", bill.name, bill.version),
        "documentNamespace": format!("urn:uuid:{}", bill.uuid("spdx")),
        "creationInfo": {
            "created": bill.created.to_string(),
            "creators": [format!("Tool: leap-image-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

fn ours(id: &str, name: &str, version: &str, digest: Option<&model::Digest>) -> Value {
    let mut entry = json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "primaryPackagePurpose": "APPLICATION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
    });
    if let Some(digest) = digest {
        entry["checksums"] = sha256(digest);
    }
    entry
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({
        "spdxElementId": from,
        "relationshipType": kind,
        "relatedSpdxElement": to,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn identifiers_are_unique_and_every_relationship_leads_somewhere() {
        let document = document(&super::super::tests::bill());
        let packages = document["packages"].as_array().unwrap();
        let ids: BTreeSet<&str> = packages
            .iter()
            .map(|package| package["SPDXID"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), packages.len());
        assert_eq!(packages.len(), 1 + 4 + 1 + 2 + 1);
        for id in &ids {
            let rest = id.strip_prefix("SPDXRef-").unwrap();
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
            assert!(rest.chars().all(good), "{id}");
        }
        let mut related = BTreeSet::new();
        for relation in document["relationships"].as_array().unwrap() {
            for end in ["spdxElementId", "relatedSpdxElement"] {
                let id = relation[end].as_str().unwrap();
                assert!(id == "SPDXRef-DOCUMENT" || ids.contains(id), "{id}");
                related.insert(id);
            }
        }
        // Nothing stands there without saying what it is to the release.
        assert!(ids.is_subset(&related));
    }

    #[test]
    fn programs_are_in_their_component_and_what_was_removed_in_nothing() {
        let document = document(&super::super::tests::bill());
        let related = |from: &str, kind: &str, to: &str| {
            let relations = document["relationships"].as_array().unwrap();
            relations.contains(&relation(from, kind, to))
        };
        let release = "SPDXRef-release";
        assert!(related(
            "SPDXRef-component-backup",
            "CONTAINS",
            "SPDXRef-program-backup-leap-backup"
        ));
        let tool = "SPDXRef-deb-tools-libstdc.2b.2b6-amd64";
        assert!(related(tool, "BUILD_TOOL_OF", release));
        let removed = "SPDXRef-deb-root-debconf-amd64";
        assert!(related(removed, "BUILD_DEPENDENCY_OF", release));
        assert!(!related(release, "CONTAINS", removed));
        assert!(related(
            release,
            "CONTAINS",
            "SPDXRef-deb-root-libstdc.2b.2b6-amd64"
        ));
    }

    #[test]
    fn the_same_bill_gives_the_same_bytes_and_another_one_another_namespace() {
        let bill = super::super::tests::bill();
        assert_eq!(document(&bill), document(&bill));
        let mut other = bill.clone();
        other.root_hash = model::Digest::of(b"other");
        let space = |bill: &Bill| document(bill)["documentNamespace"].clone();
        assert_ne!(space(&bill), space(&other));
    }
}
