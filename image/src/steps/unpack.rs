//! Unpacking Debian packages without installing them.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::exit::{self, Kind};
use edge::runner::Tool;
use model::Digest;

use crate::lock::LockedPackage;
use crate::tree::Tree;

/// Returns the package's file after checking that it is the locked one.
///
/// # Errors
/// When it is not there or its SHA-256 is another one; a damaged file is
/// removed, so that the next build fetches it again.
pub fn checked(packages: &Path, package: &LockedPackage) -> anyhow::Result<PathBuf> {
    let file = packages.join(package.file_name());
    let digest = digest_file(&file)?;
    if digest == package.sha256 {
        return Ok(file);
    }
    std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    let error = exit::marked(
        Kind::Failed,
        format!(
            "{}: SHA-256 is {digest} where {} is expected",
            file.display(),
            package.sha256
        ),
    );
    Err(exit::hint(
        error,
        "the damaged file was removed; build again to fetch it again",
    ))
}

/// Returns the SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub fn digest_file(path: &Path) -> anyhow::Result<Digest> {
    use sha2::Digest as _;
    let reading = || format!("read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).with_context(reading)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    Ok(Digest::from(digest))
}

/// Writes a package's files as an uncompressed tar archive.
///
/// # Errors
/// When `dpkg-deb` fails.
pub fn to_tar(package: &Path, to: &Path) -> anyhow::Result<()> {
    let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let tool = Tool::new("dpkg-deb").arg("--fsys-tarfile").arg(package);
    let status = tool
        .command()
        .stdout(file)
        .stderr(std::process::Stdio::inherit())
        .status()
        .with_context(|| format!("start {}", tool.line()))?;
    anyhow::ensure!(status.success(), "{}: {status}", tool.line());
    Ok(())
}

/// Unpacks packages into `folder`, as the files of whoever builds.
///
/// # Errors
/// When a package is damaged or cannot be unpacked.
pub fn into_folder<'a>(
    packages: &Path,
    list: impl Iterator<Item = &'a LockedPackage>,
    folder: &Path,
) -> anyhow::Result<()> {
    // Debian's merged /usr, which the package base-files would bring.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let target = format!("usr/{name}");
        std::fs::create_dir_all(folder.join(&target)).context("make the tools' folder")?;
        std::os::unix::fs::symlink(target, folder.join(name)).context("make the tools' folder")?;
    }
    for package in list {
        let file = checked(packages, package)?;
        let archive = Tool::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&file)
            .output()?;
        Tool::new("tar")
            .args(["--extract", "--no-same-owner", "--keep-directory-symlink"])
            .args(["--exclude=./usr/share/doc", "--exclude=./usr/share/man"])
            .args(["--exclude=./usr/share/locale"])
            .arg("--directory")
            .arg(folder)
            .stdin_bytes(archive)
            .run()
            .with_context(|| format!("unpack {}", package.package))?;
    }
    Ok(())
}

/// Unpacks a package over a tree. Its archive stays in `work`, where the tree reads it.
///
/// # Errors
/// When the package is damaged or cannot be unpacked.
pub fn into_tree(
    packages: &Path,
    package: &LockedPackage,
    work: &Path,
    tree: &mut Tree,
) -> anyhow::Result<()> {
    let file = checked(packages, package)?;
    let archive = work.join(format!("{}.tar", package.package));
    to_tar(&file, &archive)?;
    tree.add_tar(&archive)
}
