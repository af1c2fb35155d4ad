//! The root file system: installed packages, kernel modules, our own files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind as Fault};
use model::ReleaseVersion;

use super::{extension, hook, unpack};
use crate::lock::{Lock, Part};
use crate::owners::{FILES, Owner, Owners};
use crate::pattern;
use crate::recipe::{FileContent, Recipe};
use crate::tools::Tools;
use crate::tree::{self, Kind, Node, Tree};

/// The file with dpkg's status of the packages, before they are thinned out.
pub const STATUS: &str = "status";

/// What the root is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The lock.
    pub lock: &'a Lock,
    /// The folder of downloaded packages.
    pub packages: &'a Path,
    /// The packages step's archive.
    pub rootfs: &'a Path,
    /// The kernel step's folder.
    pub kernel: &'a Path,
    /// Our programs by name.
    pub binaries: &'a BTreeMap<String, PathBuf>,
    /// The trust root's bytes.
    pub trust_root: &'a [u8],
    /// The release's version.
    pub version: ReleaseVersion,
}

/// The text of `/usr/lib/os-release`.
pub fn os_release(recipe: &Recipe, version: ReleaseVersion) -> String {
    let Recipe { name, title, .. } = recipe;
    format!(
        "ID={name}\nNAME=\"{title}\"\nPRETTY_NAME=\"{title} {version}\"\nVERSION_ID={version}\n\
         IMAGE_ID={name}\nIMAGE_VERSION={version}\nSYSEXT_LEVEL=1\nCONFEXT_LEVEL=1\n"
    )
}

/// Composes the root file system as the EROFS image `root` into `out`, with
/// `files.json`, which says whose each file is.
///
/// # Errors
/// When an input is missing or the recipe does not fit what the packages brought.
pub fn compose(inputs: &Inputs<'_>, tools: &Tools, out: &Path) -> anyhow::Result<()> {
    let Inputs {
        recipe, version, ..
    } = *inputs;
    let work = tempfile::tempdir_in(out).context("make a folder to work in")?;
    let mut tree = Tree::from_tar(inputs.rootfs)?;
    let mut owners = Owners::of_packages(&tree)?;
    // The bills of materials name the packages' sources.
    std::fs::write(out.join(STATUS), tree.read("var/lib/dpkg/status")?)
        .context("keep the packages' status")?;
    for package in inputs.lock.part(Part::Unpacked) {
        unpack::into_tree(inputs.packages, package, work.path(), &mut tree)?;
        let archive = Tree::from_tar(&work.path().join(format!("{}.tar", package.package)))?;
        owners.claim(&tree, &archive, &Owner::Package(package.package.clone()));
    }
    drop_packages(&mut tree, &recipe.packages.drop)?;
    tree.remove_matching(&recipe.root.remove, &recipe.root.keep);
    add_modules(inputs, &mut tree)?;
    add_firmware(inputs, work.path(), &mut tree, &mut owners)?;
    disable_all(&mut tree);
    // Places to mount something on; the root cannot make them later.
    for path in ["dev", "proc", "run", "sys", "tmp", "var"] {
        tree.put_directory(path);
    }
    for overlay in &recipe.root.overlays {
        tree.add_folder(overlay)?;
        let mut laid = Tree::new();
        laid.add_folder(overlay)?;
        owners.claim(&tree, &laid, &Owner::Overlay);
    }
    for hook in &recipe.hooks {
        let made = hook::run(hook, &tree, recipe, version, work.path())?;
        for (path, node) in made.iter() {
            let there = matches!(node.kind, Kind::Directory) && tree.get(path).is_some();
            if !there {
                tree.put(path, node.clone());
            }
        }
        owners.claim(&tree, &made, &Owner::Hook(hook.name.clone()));
    }
    for name in &recipe.root.binaries {
        let program = inputs
            .binaries
            .get(name)
            .with_context(|| format!("program {name}: not given"))?;
        extension::add_program(&mut tree, name, program, tools, work.path())?;
    }
    tree.put_file("usr/lib/leapserv/trust-root.json", 0o644, inputs.trust_root);
    tree.put_file(
        "usr/lib/os-release",
        0o644,
        os_release(recipe, version).into_bytes(),
    );
    tree.put_link("etc/os-release", "../usr/lib/os-release");
    for user in &recipe.users {
        add_user(&mut tree, user)?;
    }
    add_files(&mut tree, recipe)?;
    for unit in &recipe.units.enable {
        enable(&mut tree, unit)?;
    }
    owners.claim_recipe(&tree, recipe, inputs.lock);
    for unit in &recipe.units.mask {
        tree.put_link(&format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    extension::write_paths(&tree, out)?;
    let files = serde_json::to_vec(&owners.finish(&tree)).context("write whose the files are")?;
    std::fs::write(out.join(FILES), files).context("write whose the files are")?;
    extension::write_image(
        &tree,
        &recipe.name,
        recipe.source_date,
        &recipe.root.last,
        tools,
        out,
        "root",
    )
}

/// Adds the kernel's modules, but not those that only an initrd needs.
fn add_modules(inputs: &Inputs<'_>, tree: &mut Tree) -> anyhow::Result<()> {
    let mut modules = Tree::new();
    modules.add_folder(&inputs.kernel.join("modules"))?;
    let mut nodes: Vec<(&str, &Node)> = modules.iter().filter(|(path, _)| *path != "lib").collect();
    nodes.sort_by_key(|(path, _)| *path);
    for (path, node) in nodes {
        tree.put(path, node.clone());
    }
    Ok(())
}

/// Adds the firmware that the recipe's patterns name, uncompressed as it lies
/// in the packages.
fn add_firmware(
    inputs: &Inputs<'_>,
    work: &Path,
    tree: &mut Tree,
    owners: &mut Owners,
) -> anyhow::Result<()> {
    const FOLDER: &str = "usr/lib/firmware/";
    let wanted = &inputs.recipe.firmware.files;
    let mut unused: BTreeSet<&String> = wanted.iter().collect();
    for package in inputs.lock.part(Part::Firmware) {
        let (mut all, mut taken) = (Tree::new(), Tree::new());
        unpack::into_tree(inputs.packages, package, work, &mut all)?;
        for (path, node) in all.iter() {
            let name = path
                .strip_prefix(FOLDER)
                .or_else(|| path.strip_prefix("lib/firmware/"));
            let Some(name) = name.filter(|_| !matches!(node.kind, Kind::Directory)) else {
                continue;
            };
            let fits = |pattern: &&String| pattern::matches(pattern, name);
            for pattern in wanted.iter().filter(fits) {
                unused.remove(pattern);
                taken.put(&format!("{FOLDER}{name}"), node.clone());
            }
        }
        for (path, node) in taken.iter() {
            tree.put(path, node.clone());
        }
        owners.claim(tree, &taken, &Owner::Package(package.package.clone()));
    }
    for wanted in wanted {
        if unused.contains(wanted) {
            bail!(exit::marked(
                Fault::InvalidInput,
                format!("firmware.files: {wanted:?}: in none of the packages of firmware.packages"),
            ));
        }
    }
    Ok(())
}

/// Takes out the files of packages that were needed only to install the others.
fn drop_packages(tree: &mut Tree, packages: &[String]) -> anyhow::Result<()> {
    let lists: Vec<String> = tree
        .iter()
        .filter_map(|(path, _)| {
            let name = path.strip_prefix("var/lib/dpkg/info/")?;
            name.strip_suffix(".list").map(str::to_owned)
        })
        .collect();
    let plain = |list: &str| list.split(':').next().unwrap_or(list).to_owned();
    let read = |tree: &Tree, list: &String| -> anyhow::Result<Vec<String>> {
        let bytes = tree.read(&format!("var/lib/dpkg/info/{list}.list"))?;
        Ok(String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect())
    };
    let mut kept = BTreeSet::new();
    let mut gone = Vec::new();
    for list in &lists {
        let files = read(tree, list)?;
        if packages.contains(&plain(list)) {
            gone.extend(files);
        } else {
            kept.extend(files);
        }
    }
    for package in packages {
        if !lists.iter().any(|list| plain(list) == *package) {
            bail!(exit::marked(
                Fault::InvalidInput,
                format!("packages.drop: package {package:?} is not installed"),
            ));
        }
    }
    for path in gone.into_iter().filter(|path| !kept.contains(path)) {
        let is_directory = tree
            .get(&path)
            .is_none_or(|node| matches!(node.kind, Kind::Directory));
        if !is_directory {
            tree.remove(&path);
        }
    }
    Ok(())
}

/// Disables what packages have enabled: only the recipe says what starts.
fn disable_all(tree: &mut Tree) {
    let enabled: Vec<String> = tree
        .iter()
        .filter(|(path, node)| {
            path.starts_with("etc/systemd/system/") && matches!(node.kind, Kind::Link(_))
        })
        .map(|(path, _)| path.to_owned())
        .collect();
    for path in enabled {
        tree.remove(&path);
    }
}

/// Enables a unit as its `[Install]` section says, by links below
/// `/etc/systemd/system`, as `systemctl enable` does.
fn enable(tree: &mut Tree, unit: &str) -> anyhow::Result<()> {
    let (file, instance) = match unit.split_once('@') {
        Some((name, rest)) if !rest.starts_with('.') => {
            let (_, suffix) = rest.rsplit_once('.').unwrap_or((rest, "service"));
            (format!("{name}@.{suffix}"), true)
        }
        _ => (unit.to_owned(), false),
    };
    let place = ["etc/systemd/system", "usr/lib/systemd/system"]
        .iter()
        .map(|folder| format!("{folder}/{file}"))
        .find(|path| tree.resolve(path).is_some());
    let Some(place) = place else {
        bail!(exit::marked(
            Fault::InvalidInput,
            format!("units.enable: unit {unit:?} is in none of the packages"),
        ));
    };
    let text = String::from_utf8(tree.read(&place)?)
        .with_context(|| format!("unit {unit}: expected UTF-8"))?;
    let target = format!("/{place}");
    let mut done = false;
    for (key, value) in install_section(&text) {
        for name in value.split_whitespace() {
            let suffix = match key {
                "WantedBy" => "wants",
                "RequiredBy" => "requires",
                "UpheldBy" => "upholds",
                "Alias" => {
                    tree.put_link(&format!("etc/systemd/system/{name}"), &target);
                    done = true;
                    continue;
                }
                _ => continue,
            };
            let link = format!("etc/systemd/system/{name}.{suffix}/{unit}");
            tree.put_link(&link, &target);
            done = true;
        }
    }
    if !done && !instance {
        bail!(exit::marked(
            Fault::InvalidInput,
            format!("units.enable: unit {unit:?} has no [Install] section"),
        ));
    }
    Ok(())
}

/// The keys and values of a unit's `[Install]` section.
fn install_section(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .map(str::trim)
        .skip_while(|line| *line != "[Install]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

/// Adds a user whom no password opens.
fn add_user(tree: &mut Tree, user: &crate::recipe::User) -> anyhow::Result<()> {
    let crate::recipe::User {
        name,
        id,
        home,
        shell,
    } = user;
    let lines_of = |path: &str| -> anyhow::Result<String> {
        let bytes = tree.read(path)?;
        String::from_utf8(bytes).with_context(|| format!("/{path}: expected UTF-8"))
    };
    let entry = |text: &str| -> Option<Vec<String>> {
        let found = text
            .lines()
            .find(|line| line.split(':').next() == Some(name));
        found.map(|line| line.split(':').map(str::to_owned).collect())
    };
    if entry(&lines_of("etc/passwd")?).is_some() {
        bail!(exit::marked(
            Fault::InvalidInput,
            format!("user {name:?}: a package has made one of this name"),
        ));
    }
    // Debian has groups without users, `operator` among them.
    let group = entry(&lines_of("etc/group")?).and_then(|fields| fields.get(2).cloned());
    let gid = group.clone().unwrap_or_else(|| id.to_string());
    let mut lines = vec![
        (
            "etc/passwd",
            format!("{name}:x:{id}:{gid}::{home}:{shell}\n"),
        ),
        // `*` and not `!`: sshd takes an account with `!` for locked.
        ("etc/shadow", format!("{name}:*:::::::\n")),
    ];
    if group.is_none() {
        lines.push(("etc/group", format!("{name}:x:{id}:\n")));
        lines.push(("etc/gshadow", format!("{name}:*::\n")));
    }
    for (path, line) in lines {
        let node = tree
            .get(path)
            .with_context(|| format!("/{path}: not in the root"))?
            .clone();
        let mut text = tree.read(path)?;
        text.extend_from_slice(line.as_bytes());
        let kind = Kind::File(tree::Content::Bytes(text.into()));
        tree.put(path, Node { kind, ..node });
    }
    Ok(())
}

fn add_files(tree: &mut Tree, recipe: &Recipe) -> anyhow::Result<()> {
    for file in &recipe.files {
        let kind = match &file.content {
            FileContent::Text(text) => Kind::File(tree::Content::Bytes(text.as_bytes().into())),
            FileContent::Source(path) => {
                let meta = std::fs::metadata(path)
                    .with_context(|| format!("look at {}", path.display()))?;
                Kind::File(tree::host_file(path, &meta).1)
            }
            FileContent::Link(target) => Kind::Link(target.clone()),
            FileContent::Directory => Kind::Directory,
        };
        tree.put(&file.path, Node::of_root(file.mode, kind));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_unit() -> Tree {
        let mut tree = Tree::new();
        let unit =
            "[Unit]\nDescription=x\n[Install]\nWantedBy=multi-user.target\nAlias=y.service\n";
        tree.put_file("usr/lib/systemd/system/x.service", 0o644, unit.as_bytes());
        tree.put_file("usr/lib/systemd/system/z.service", 0o644, *b"[Unit]\n");
        tree
    }

    #[test]
    fn a_unit_is_enabled_as_its_install_section_says() {
        let mut tree = with_unit();
        enable(&mut tree, "x.service").unwrap();
        for path in [
            "etc/systemd/system/multi-user.target.wants/x.service",
            "etc/systemd/system/y.service",
        ] {
            assert_eq!(
                tree.resolve(path).as_deref(),
                Some("usr/lib/systemd/system/x.service"),
                "{path}"
            );
        }
        disable_all(&mut tree);
        assert!(tree.get("etc/systemd/system/y.service").is_none());
    }

    #[test]
    fn a_unit_that_cannot_be_enabled_is_refused() {
        let mut tree = with_unit();
        assert!(enable(&mut tree, "none.service").is_err());
        assert!(enable(&mut tree, "z.service").is_err());
    }

    #[test]
    fn dropped_packages_leave_shared_files_and_lists_of_others() {
        let mut tree = Tree::new();
        tree.put_file("usr/bin/perl", 0o755, *b"p");
        tree.put_file("usr/bin/shared", 0o755, *b"s");
        let list = |files: &str| files.replace(' ', "\n").into_bytes();
        let perl = list("/usr /usr/bin /usr/bin/perl /usr/bin/shared");
        tree.put_file("var/lib/dpkg/info/perl-base.list", 0o644, perl);
        tree.put_file(
            "var/lib/dpkg/info/sed:amd64.list",
            0o644,
            list("/usr/bin/shared"),
        );
        drop_packages(&mut tree, &["perl-base".into()]).unwrap();
        assert!(tree.get("usr/bin/perl").is_none());
        assert!(tree.get("usr/bin/shared").is_some());
        let unknown = drop_packages(&mut tree, &["pearl".into()]).unwrap_err();
        assert!(unknown.to_string().contains("pearl"));
    }

    #[test]
    fn a_new_user_has_no_password_and_a_taken_name_is_refused() {
        let mut tree = Tree::new();
        for path in ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"] {
            tree.put_file(path, 0o640, *b"root:*:0:\n");
        }
        let mut user = crate::recipe::User {
            name: "operator".into(),
            id: 900,
            home: "/var/lib/leapserv/home".into(),
            shell: "/bin/bash".into(),
        };
        add_user(&mut tree, &user).unwrap();
        let shadow = String::from_utf8(tree.read("etc/shadow").unwrap()).unwrap();
        assert!(shadow.ends_with("operator:*:::::::\n"), "{shadow}");
        assert_eq!(tree.get("etc/shadow").unwrap().mode, 0o640);
        user.name = "root".into();
        assert!(add_user(&mut tree, &user).is_err());
        // A group of the name is the user's own.
        tree.put_file("etc/group", 0o644, *b"backup:*:34:\n");
        user.name = "backup".into();
        add_user(&mut tree, &user).unwrap();
        let passwd = String::from_utf8(tree.read("etc/passwd").unwrap()).unwrap();
        assert!(passwd.contains("backup:x:900:34:"), "{passwd}");
        assert_eq!(tree.read("etc/group").unwrap(), b"backup:*:34:\n");
    }
}
