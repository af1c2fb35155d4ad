//! The kernel: its image and the modules that the recipe allows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use edge::runner::Tool;

use super::unpack;
use crate::lock::{Lock, Part};
use crate::pattern;
use crate::recipe::Recipe;
use crate::tools::Tools;
use crate::tree::Tree;

/// Unpacks the kernel into `out`: `vmlinuz`, `release` (its version), `config`
/// and `modules/`, which lies as in the root, uncompressed, with its indexes.
///
/// # Errors
/// When the package is damaged, or the recipe names a module that it has not.
pub fn pick(
    recipe: &Recipe,
    lock: &Lock,
    packages: &Path,
    tools: &Tools,
    out: &Path,
) -> anyhow::Result<()> {
    let package = lock
        .part(Part::Kernel)
        .next()
        .context("the lock has no kernel")?;
    let archive = out.join("kernel.tar");
    unpack::to_tar(&unpack::checked(packages, package)?, &archive)?;
    let tree = Tree::from_tar(&archive)?;
    let (kernel, release) = tree
        .iter()
        .find_map(|(path, _)| Some((path, path.strip_prefix("boot/vmlinuz-")?.to_owned())))
        .with_context(|| format!("{}: has no /boot/vmlinuz-…", package.package))?;
    std::fs::write(out.join("vmlinuz"), tree.read(kernel)?).context("write the kernel")?;
    std::fs::write(out.join("release"), &release).context("write the kernel's version")?;
    let config = tree.read(&format!("boot/config-{release}"))?;
    std::fs::write(out.join("config"), config).context("write the kernel's configuration")?;

    let base = out.join("modules");
    let folder = format!("usr/lib/modules/{release}");
    let mut paths = Vec::new();
    for (path, node) in tree.iter() {
        let Some(inner) = path.strip_prefix(&format!("{folder}/")) else {
            continue;
        };
        let crate::tree::Kind::File(content) = &node.kind else {
            continue;
        };
        let place = base.join(path);
        let parent = place.parent().context("a module has a folder")?;
        std::fs::create_dir_all(parent).context("unpack the modules")?;
        std::fs::write(&place, content.read()?).context("unpack the modules")?;
        if inner.contains(".ko") {
            paths.push(inner.to_owned());
        }
    }
    // kmod and the root agree on /usr/lib/modules by way of a link.
    std::os::unix::fs::symlink("usr/lib", base.join("lib")).context("unpack the modules")?;
    std::fs::remove_file(&archive).context("remove the kernel's archive")?;

    // Which modules need which others is known only to depmod, so it runs
    // on all of them first and on the chosen ones again.
    let depmod = || -> anyhow::Result<()> {
        tools
            .tool("depmod")?
            .arg("--basedir")
            .arg(&base)
            .arg(&release)
            .run()
            .context("index the modules")
    };
    depmod()?;
    let dependencies = read_dependencies(&base.join(&folder))?;
    let lists = [
        &recipe.kernel.modules,
        &recipe.initrd.modules,
        &recipe.installer.modules,
    ];
    let builtin =
        std::fs::read_to_string(base.join(&folder).join("modules.builtin")).unwrap_or_default();
    let wanted: Vec<String> = lists.into_iter().flatten().cloned().collect();
    let chosen = choose(&wanted, &dependencies, &builtin).map_err(|unknown| {
        let error = exit::marked(
            Kind::InvalidInput,
            format!("module {:?}: not in {}", unknown.pattern, package.package),
        );
        match unknown.nearest {
            Some(nearest) => exit::hint(error, format!("did you mean {nearest:?}?")),
            None => error,
        }
    })?;
    let mut compressed = Vec::new();
    for path in &paths {
        let file = base.join(&folder).join(path);
        if !chosen.contains(path) {
            std::fs::remove_file(&file).context("remove a module")?;
        } else if path.ends_with(".xz") {
            compressed.push(file);
        }
    }
    if !compressed.is_empty() {
        Tool::new("xz")
            .args(["--decompress", "--"])
            .args(&compressed)
            .run()
            .context("decompress the modules")?;
    }
    remove_empty(&base.join(&folder).join("kernel"))?;
    depmod()?;
    if chosen.is_empty() {
        bail!("kernel.modules: chooses no module of {}", package.package);
    }
    Ok(())
}

fn remove_empty(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).context("read the modules' folder")? {
        let path = entry.context("read the modules' folder")?.path();
        if path.is_dir() {
            remove_empty(&path)?;
        }
    }
    // Fails on those that hold something, as it should.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// Modules by path, each with the paths of those that must be loaded before it.
pub type Dependencies = BTreeMap<String, Vec<String>>;

/// Reads the dependencies that depmod has written to a folder of modules.
///
/// # Errors
/// When a file cannot be read.
pub fn read_dependencies(folder: &Path) -> anyhow::Result<Dependencies> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let mut dependencies = parse_dependencies(&read("modules.dep")?);
    add_soft(
        &mut dependencies,
        &read("modules.softdep")?,
        &read("modules.alias")?,
    );
    Ok(dependencies)
}

/// Adds what modules ask for by name while they are loaded: `softdep
/// libcrc32c pre: crc32c`, where `crc32c` may be an alias of several modules.
/// Without one of these libcrc32c, and with it every file system, fails.
pub fn add_soft(dependencies: &mut Dependencies, soft: &str, aliases: &str) {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in dependencies.keys() {
        by_name
            .entry(module_name(path))
            .or_default()
            .push(path.clone());
    }
    let mut by_alias: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in aliases.lines() {
        let mut words = line.split_whitespace().skip(1);
        if let (Some(alias), Some(module)) = (words.next(), words.next()) {
            let paths = by_name.get(&module_name(module));
            let found = by_alias.entry(module_name(alias)).or_default();
            found.extend(paths.into_iter().flatten().cloned());
        }
    }
    for line in soft.lines() {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
            continue;
        };
        let wanted: Vec<String> = words
            .filter(|word| !word.ends_with(':'))
            .map(module_name)
            .flat_map(|name| by_name.get(&name).or_else(|| by_alias.get(&name)))
            .flatten()
            .cloned()
            .collect();
        for path in by_name.get(&module_name(module)).into_iter().flatten() {
            if let Some(needs) = dependencies.get_mut(path) {
                needs.extend_from_slice(&wanted);
            }
        }
    }
}

/// Reads `modules.dep`: `path: dependency dependency`.
pub fn parse_dependencies(text: &str) -> Dependencies {
    text.lines()
        .filter_map(|line| {
            let (path, rest) = line.split_once(':')?;
            let needs = rest.split_whitespace().map(str::to_owned).collect();
            Some((path.to_owned(), needs))
        })
        .collect()
}

/// The name by which a module is loaded: no folder, no suffix, `_` for `-`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

/// A pattern that matches no module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModule {
    /// The pattern.
    pub pattern: String,
    /// The module with the nearest name.
    pub nearest: Option<String>,
}

/// Chooses the modules that `patterns` name, and those that they need.
///
/// A pattern with a slash is one of paths below `kernel/`, without the
/// suffix; another one is a pattern of names. A module that is built into
/// the kernel (listed in `builtin`) may be named and gives nothing.
///
/// # Errors
/// The first pattern that matches nothing.
pub fn choose(
    patterns: &[String],
    dependencies: &Dependencies,
    builtin: &str,
) -> Result<BTreeSet<String>, UnknownModule> {
    let names: Vec<(&String, String)> = dependencies
        .keys()
        .map(|path| (path, module_name(path)))
        .collect();
    let built_in: Vec<String> = builtin.lines().map(module_name).collect();
    let mut chosen = BTreeSet::new();
    for wanted in patterns {
        let mut found = false;
        if wanted.contains('/') {
            for path in dependencies.keys() {
                let plain = path.split(".ko").next().unwrap_or(path);
                let inner = plain.strip_prefix("kernel/").unwrap_or(plain);
                if pattern::matches(wanted, inner) {
                    found = true;
                    chosen.insert(path.clone());
                }
            }
        } else {
            let name = wanted.replace('-', "_");
            for (path, _) in names.iter().filter(|(_, n)| pattern::matches(&name, n)) {
                found = true;
                chosen.insert((*path).clone());
            }
            found |= built_in.iter().any(|n| pattern::matches(&name, n));
        }
        if !found {
            let known = names.iter().map(|(_, name)| name.as_str());
            return Err(UnknownModule {
                pattern: wanted.clone(),
                nearest: crate::recipe::nearest(wanted, known).map(str::to_owned),
            });
        }
    }
    let mut open: Vec<String> = chosen.iter().cloned().collect();
    while let Some(path) = open.pop() {
        for needed in dependencies.get(&path).into_iter().flatten() {
            if chosen.insert(needed.clone()) {
                open.push(needed.clone());
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/failover.ko.xz\nkernel/net/core/failover.ko.xz:\nkernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-mod.ko.xz\nkernel/drivers/md/dm-mod.ko.xz:\nkernel/drivers/hwmon/nct6775.ko.xz:\n";

    fn chosen(patterns: &[&str]) -> Result<Vec<String>, UnknownModule> {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let builtin = "kernel/drivers/virtio/virtio_pci.ko\n";
        choose(&patterns, &parse_dependencies(DEP), builtin)
            .map(|set| set.iter().map(|path| module_name(path)).collect())
    }

    #[test]
    fn a_module_brings_what_it_needs() {
        assert_eq!(chosen(&["virtio_*"]).unwrap(), ["virtio_net", "failover"]);
        assert_eq!(chosen(&["dm-verity"]).unwrap(), ["dm_mod", "dm_verity"]);
        assert_eq!(chosen(&["drivers/hwmon/**"]).unwrap(), ["nct6775"]);
    }

    #[test]
    fn a_module_brings_what_it_asks_for_by_an_alias() {
        let dep = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/lib/libcrc32c.ko.xz:\nkernel/arch/x86/crypto/crc32c-intel.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\nkernel/crypto/aes_ti.ko.xz:\n";
        let mut dependencies = parse_dependencies(dep);
        add_soft(
            &mut dependencies,
            "# Soft dependencies\nsoftdep libcrc32c pre: crc32c\n",
            "alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias aes aes_ti\n",
        );
        let chosen = choose(&["erofs".to_owned()], &dependencies, "").unwrap();
        let names: Vec<String> = chosen.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            ["crc32c_intel", "crc32c_generic", "erofs", "libcrc32c"]
        );
    }

    #[test]
    fn a_built_in_module_may_be_named_and_an_unknown_one_not() {
        assert!(chosen(&["virtio_pci"]).unwrap().is_empty());
        let unknown = chosen(&["dm-veritx"]).unwrap_err();
        assert_eq!(unknown.nearest.as_deref(), Some("dm_verity"));
    }
}
