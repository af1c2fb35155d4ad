//! CycloneDX 1.6 as JSON.

use serde_json::{Value, json};

use super::{Bill, Role, crate_url, deb_url};

const RELEASE: &str = "release";

/// Writes the bill down.
pub fn document(bill: &Bill) -> Value {
    let mut components = Vec::new();
    let mut needs = Vec::new();
    for package in &bill.packages {
        let locked = &package.locked;
        let url = deb_url(locked, &bill.suite);
        let part = locked.part.to_string();
        let reference = format!("{part}/{url}");
        let mut properties = vec![
            json!({ "name": "leapserv:part", "value": part }),
            json!({ "name": "leapserv:suite", "value": locked.suite }),
        ];
        if let Some((name, version)) = &package.source {
            let value = format!("{name} {version}");
            properties.push(json!({ "name": "leapserv:source", "value": value }));
        }
        let content = package.role == Role::Content;
        components.push(json!({
            "type": "library",
            "bom-ref": reference,
            "supplier": { "name": "Debian" },
            "name": locked.package,
            "version": locked.version,
            // Build tools, and what was removed again, are not what runs on a unit.
            "scope": if content { "required" } else { "excluded" },
            "hashes": sha256(&locked.sha256),
            "purl": url,
            "properties": properties,
        }));
        if content {
            needs.push(reference);
        }
    }
    let program = |program: &super::Program| {
        let place = program.component.as_deref().unwrap_or("root");
        json!({
            "type": "application",
            "bom-ref": format!("program/{place}/{}", program.name),
            "name": program.name,
            "version": program.version,
            "hashes": sha256(&program.sha256),
        })
    };
    for component in &bill.components {
        let programs = bill.programs.iter();
        let inside: Vec<Value> = programs
            .filter(|program| program.component.as_deref() == Some(&component.name))
            .map(program)
            .collect();
        let reference = format!("component/{}", component.name);
        components.push(json!({
            "type": "application",
            "bom-ref": reference,
            "name": component.name,
            "version": component.version,
            "hashes": sha256(&component.sha256),
            "components": inside,
        }));
        needs.push(reference);
    }
    for one in bill.programs.iter().filter(|one| one.component.is_none()) {
        components.push(program(one));
        needs.push(format!("program/root/{}", one.name));
    }
    for one in &bill.crates {
        let url = crate_url(one);
        let mut entry = json!({
            "type": "library",
            "bom-ref": url,
            "name": one.name,
            "version": one.version,
            "purl": url,
        });
        if let Some(digest) = &one.sha256 {
            entry["hashes"] = sha256(digest);
        }
        components.push(entry);
        needs.push(url);
    }
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", bill.uuid("cyclonedx")),
        "version": 1,
        "metadata": {
            "timestamp": bill.created.to_string(),
            "tools": { "components": [{
                "type": "application",
                "name": "leap-image",
                "version": env!("CARGO_PKG_VERSION"),
            }] },
            "component": {
                "type": "operating-system",
                "bom-ref": RELEASE,
                "name": bill.name,
                "version": bill.version,
                "properties": [
                    { "name": "leapserv:root-hash", "value": bill.root_hash.to_string() },
                ],
            },
        },
        "components": components,
        "dependencies": [{ "ref": RELEASE, "dependsOn": needs }],
    })
}

fn sha256(digest: &model::Digest) -> Value {
    json!([{ "alg": "SHA-256", "content": digest.to_string() }])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn references_are_unique_and_dependencies_lead_to_them() {
        let document = document(&super::super::tests::bill());
        let mut references = BTreeSet::new();
        let components = document["components"].as_array().unwrap();
        let inner = components.iter().filter_map(|c| c["components"].as_array());
        let mut count = 0;
        for component in components.iter().chain(inner.flatten()) {
            count += 1;
            references.insert(component["bom-ref"].as_str().unwrap());
        }
        assert_eq!((references.len(), count), (8, 8));
        let needs = document["dependencies"][0]["dependsOn"].as_array().unwrap();
        for need in needs {
            assert!(references.contains(need.as_str().unwrap()), "{need}");
        }
        let needed = |part: &str, name: &str| {
            let start = format!("{part}/pkg:deb/debian/{name}@");
            let mut needs = needs.iter().filter_map(Value::as_str);
            needs.any(|need| need.starts_with(&start))
        };
        assert!(needed("root", "libstdc%2B%2B6"));
        assert!(!needed("tools", "libstdc%2B%2B6"));
        assert!(!needed("root", "debconf"));
    }

    #[test]
    fn build_tools_are_excluded_and_programs_lie_in_their_component() {
        let document = document(&super::super::tests::bill());
        let components = document["components"].as_array().unwrap();
        let named = |name: &str| {
            let found = components.iter().filter(|c| c["name"] == name);
            found.collect::<Vec<_>>()
        };
        let scopes: Vec<&Value> = named("libstdc++6").iter().map(|c| &c["scope"]).collect();
        assert_eq!(scopes, ["required", "excluded"]);
        assert_eq!(named("debconf")[0]["scope"], "excluded");
        assert_eq!(named("backup")[0]["components"][0]["name"], "leap-backup");
        assert!(named("leap-backup").is_empty());
    }
}
