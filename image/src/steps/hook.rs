//! Hooks: programs of the build host that make files of the root.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context as _;
use edge::runner::Tool;
use model::ReleaseVersion;

use crate::recipe::{Hook, Recipe};
use crate::tree::Tree;

/// Runs a hook and returns the files that it made.
///
/// It runs in an empty folder with an environment of its own, without a
/// network where the kernel lets it be cut off. `$LEAP_ROOT` is an archive of
/// the root so far, `$LEAP_OUT` the folder for its files: they become root's,
/// with modes 0755 and 0644 by the executable bit.
///
/// # Errors
/// When it cannot be started or fails: then with its last words.
pub fn run(
    hook: &Hook,
    tree: &Tree,
    recipe: &Recipe,
    version: ReleaseVersion,
    work: &Path,
) -> anyhow::Result<Tree> {
    let name = &hook.name;
    let making = || format!("hook {name}: make its folders");
    let place = tempfile::tempdir_in(work).with_context(making)?.keep();
    let (out, current) = (place.join("out"), place.join("current"));
    for folder in [&out, &current] {
        std::fs::create_dir(folder).with_context(making)?;
    }
    let archive = place.join("root.tar");
    let file = File::create(&archive).with_context(making)?;
    tree.write_tar(
        BufWriter::with_capacity(1 << 20, file),
        u64::from(recipe.source_date),
        &[],
    )?;
    let program = std::path::absolute(&hook.run).with_context(making)?;
    isolated(&program)
        .arg(&program)
        .current_dir(&current)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", &current)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("SOURCE_DATE_EPOCH", recipe.source_date.to_string())
        .env("LEAP_NAME", &recipe.name)
        .env("LEAP_VERSION", version.to_string())
        .env("LEAP_ARCHITECTURE", recipe.architecture.name())
        .env("LEAP_ROOT", &archive)
        .env("LEAP_OUT", &out)
        .run()
        .with_context(|| format!("hook {name}"))?;
    let mut made = Tree::new();
    made.add_folder(&out)
        .with_context(|| format!("hook {name}"))?;
    Ok(made)
}

/// What keeps a hook off the network: an output that depends on what some
/// server says today is not reproducible.
fn isolated(program: &Path) -> Tool {
    let unshare = |arguments: &[&str]| Tool::new("unshare").args(arguments).arg("--");
    for arguments in [&["--net"][..], &["--map-current-user", "--net"][..]] {
        if unshare(arguments).arg("true").run().is_ok() {
            return unshare(arguments);
        }
    }
    tracing::warn!(
        hook = %program.display(),
        "runs with the network: this machine has no namespaces for an ordinary user"
    );
    Tool::new("env")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn hook(folder: &Path, script: &str) -> Hook {
        let run = folder.join("hook");
        std::fs::write(&run, script).unwrap();
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).unwrap();
        Hook {
            name: "stamp".into(),
            run,
            inputs: Vec::new(),
        }
    }

    fn run_script(script: &str) -> anyhow::Result<Tree> {
        let folder = tempfile::tempdir().unwrap();
        let text = "name = \"x\"\narchitecture = \"amd64\"\nsuite = \"trixie\"\nsource-date = \"2026-11-01T00:00:00Z\"\n[kernel]\npackage = \"linux\"\n[packages]\ntools = [\"kmod\"]\ninstall = [\"udev\"]\n";
        let read = |_: &Path| Ok(text.to_owned());
        let recipe = crate::recipe::load(Path::new("r"), &[], &read).unwrap();
        let mut tree = Tree::new();
        tree.put_file("etc/motd", 0o600, *b"hello\n");
        let hook = hook(folder.path(), script);
        let version = "2026.11.1".parse().unwrap();
        let made = run(&hook, &tree, &recipe, version, folder.path())?;
        // Its files are read while the folder is there.
        let mut kept = Tree::new();
        for (path, node) in made.iter() {
            match &node.kind {
                crate::tree::Kind::File(content) => {
                    kept.put_file(path, node.mode, content.read().unwrap());
                }
                _ => kept.put(path, node.clone()),
            }
        }
        Ok(kept)
    }

    #[test]
    fn a_hook_sees_the_root_and_its_files_become_roots() {
        let made = run_script(
            "#!/bin/sh\nset -eu\numask 077\nmkdir $LEAP_OUT/etc\ntar -xOf $LEAP_ROOT etc/motd > $LEAP_OUT/etc/copy\necho $LEAP_VERSION $SOURCE_DATE_EPOCH >> $LEAP_OUT/etc/copy\n",
        )
        .unwrap();
        assert_eq!(
            made.read("etc/copy").unwrap(),
            b"hello\n2026.11.1 1793491200\n"
        );
        assert_eq!(made.get("etc/copy").unwrap().mode, 0o644);
    }

    #[test]
    fn a_hook_that_fails_is_named_with_its_last_words() {
        let error = run_script("#!/bin/sh\necho 'no font' >&2\nexit 3\n").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("hook stamp:"), "{text}");
        assert!(text.contains("no font"), "{text}");
    }
}
