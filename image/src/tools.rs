//! The build's tools, of the release's own suite.
//!
//! Their packages are unpacked into a folder and run from there with the
//! loader and libraries beside them: neither root, nor a namespace, nor the
//! host's versions of them are needed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::runner::Tool;
use model::Architecture;

use crate::elf;
use crate::tree::{Kind, Node, Tree};

/// Folders of libraries, in the order in which the loader looks into them.
fn library_folders(architecture: Architecture) -> [String; 2] {
    let triplet = match architecture {
        Architecture::Amd64 => "x86_64-linux-gnu",
        Architecture::Arm64 => "aarch64-linux-gnu",
    };
    [format!("usr/lib/{triplet}"), "usr/lib".to_owned()]
}

/// The tools' folder.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
    tree: Tree,
    architecture: Architecture,
}

impl Tools {
    /// Opens the folder into which the tools' packages were unpacked.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(folder: &Path, architecture: Architecture) -> anyhow::Result<Self> {
        let mut tree = Tree::new();
        tree.add_folder(folder).context("read the tools' folder")?;
        Ok(Self {
            folder: folder.to_owned(),
            tree,
            architecture,
        })
    }

    /// All that the tools' packages hold, as root's.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// A program of the tools, ready to run on the build host.
    ///
    /// # Errors
    /// When the tools have no such program.
    pub fn tool(&self, program: &str) -> anyhow::Result<Tool> {
        let path = find_program(&self.tree, program)
            .with_context(|| format!("{program}: in none of the packages in packages.tools"))?;
        let folders = library_folders(self.architecture);
        let libraries: Vec<String> = folders
            .iter()
            .map(|folder| self.folder.join(folder).display().to_string())
            .collect();
        let interpreter = elf::needs(&self.tree.read(&path)?)
            .and_then(|needs| needs.interpreter)
            .with_context(|| format!("{program}: expected a dynamically linked program"))?;
        let loader = self
            .tree
            .resolve(&interpreter)
            .with_context(|| format!("{interpreter}: in none of the packages in packages.tools"))?;
        // The path as it was found, not what it links to: kmod acts by its name.
        Ok(Tool::new(self.folder.join(loader))
            .arg("--library-path")
            .arg(libraries.join(":"))
            .arg(self.folder.join(path))
            .env("LC_ALL", "C")
            .env("TZ", "UTC"))
    }
}

fn find_program(tree: &Tree, program: &str) -> Option<String> {
    ["usr/bin", "usr/sbin"]
        .iter()
        .map(|folder| format!("{folder}/{program}"))
        .find(|path| tree.resolve(path).is_some())
}

/// Copies `program` from one tree to another with the loader, the libraries
/// that it needs and the links on the way. Programs keep their paths.
///
/// # Errors
/// When the program or a library is not there.
pub fn copy_program(
    from: &Tree,
    to: &mut Tree,
    program: &str,
    architecture: Architecture,
) -> anyhow::Result<()> {
    let path = if program.contains('/') {
        program.trim_start_matches('/').to_owned()
    } else {
        find_program(from, program)
            .with_context(|| format!("{program}: in none of the packages in packages.tools"))?
    };
    let bytes = copy_file(from, to, &path)?;
    copy_libraries(from, to, &bytes, architecture).with_context(|| format!("copy {program}"))
}

/// Copies the loader and the libraries that the ELF file `bytes` needs.
///
/// # Errors
/// When one of them is not there.
pub fn copy_libraries(
    from: &Tree,
    to: &mut Tree,
    bytes: &[u8],
    architecture: Architecture,
) -> anyhow::Result<()> {
    let Some(needs) = elf::needs(bytes) else {
        return Ok(());
    };
    let mut wanted = needs.libraries;
    if let Some(loader) = needs.interpreter {
        copy_file(from, to, loader.trim_start_matches('/'))?;
    }
    while let Some(name) = wanted.pop() {
        let path = library_folders(architecture)
            .iter()
            .map(|folder| format!("{folder}/{name}"))
            .find(|path| from.resolve(path).is_some())
            .with_context(|| format!("library {name}: in none of the packages"))?;
        if to.get(&path).is_some() {
            continue;
        }
        let bytes = copy_file(from, to, &path)?;
        wanted.extend(elf::needs(&bytes).unwrap_or_default().libraries);
    }
    Ok(())
}

/// Copies the file that `path` leads to, and the link when it is one. Returns its bytes.
fn copy_file(from: &Tree, to: &mut Tree, path: &str) -> anyhow::Result<Vec<u8>> {
    let target = from
        .resolve(path)
        .with_context(|| format!("/{path}: in none of the packages"))?;
    let node = from
        .get(&target)
        .with_context(|| format!("/{target}: in none of the packages"))?;
    to.put(&target, node.clone());
    // `/lib64/ld-linux…` stays where programs look for it.
    if to.resolve(path) != to.resolve(&target) {
        to.put(path, Node::of_root(0o777, Kind::Link(format!("/{target}"))));
    }
    from.read(&target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_brings_its_loader_and_libraries() {
        // This test program and the host's libraries stand in for packages.
        let mut from = Tree::new();
        let exe = std::fs::read("/proc/self/exe").unwrap();
        let needs = elf::needs(&exe).unwrap();
        from.put_file("usr/bin/us", 0o755, exe);
        from.put_link("lib64", "usr/lib64");
        let loader = needs.interpreter.unwrap();
        from.put_file(&loader, 0o755, *b"loader");
        for name in &needs.libraries {
            from.put_file(&format!("usr/lib/x86_64-linux-gnu/{name}.9"), 0o644, *b"x");
            from.put_link(
                &format!("usr/lib/x86_64-linux-gnu/{name}"),
                &format!("{name}.9"),
            );
        }
        let mut to = Tree::new();
        copy_program(&from, &mut to, "us", Architecture::Amd64).unwrap();
        assert!(to.read("usr/bin/us").is_ok());
        assert_eq!(to.read(&loader).unwrap(), b"loader");
        for name in &needs.libraries {
            assert!(
                to.read(&format!("usr/lib/x86_64-linux-gnu/{name}")).is_ok(),
                "{name}"
            );
        }
        // Where /usr/sbin is a link to /usr/bin, no link to itself is made.
        from.put_file("usr/sbin/there", 0o755, from.read("usr/bin/us").unwrap());
        to.put_link("usr/sbin", "bin");
        copy_program(&from, &mut to, "there", Architecture::Amd64).unwrap();
        assert!(to.read("usr/bin/there").is_ok());
        let missing = copy_program(&from, &mut to, "them", Architecture::Amd64).unwrap_err();
        assert!(missing.to_string().starts_with("them:"), "{missing}");
    }

    #[test]
    fn libraries_and_boot_files_have_the_architectures_own_names() {
        let names = Architecture::ALL.map(|architecture| {
            let [first, second] = library_folders(architecture);
            let firmware = crate::steps::uki::firmware_name(architecture);
            format!("{first} {second} systemd-boot{firmware}.efi")
        });
        assert_eq!(
            names,
            [
                "usr/lib/x86_64-linux-gnu usr/lib systemd-bootx64.efi",
                "usr/lib/aarch64-linux-gnu usr/lib systemd-bootaa64.efi",
            ]
        );
    }
}
