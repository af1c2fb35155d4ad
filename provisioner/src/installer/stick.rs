//! The stick that this installer was started from, where there is one.
//!
//! The boot stub notes the partition that the firmware has started it from (systemd, "The
//! Boot Loader Interface", `LoaderDevicePartUUID`); after network boot there is none. A
//! stick that is merely plugged in says nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use model::pass::{PassCode, StickSettings};
use slots::Disk;
use slots::esp::{Fat, STICK_PASS, STICK_SETTINGS};

/// The variable in which the boot stub notes its partition.
const STARTED_FROM: &str =
    "sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// How long a stick may take to appear: its bus is looked at last.
const APPEARS: Duration = Duration::from_secs(20);

/// A stick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stick {
    /// The partition that it is.
    pub partition: PathBuf,
    /// Where the sky is.
    pub settings: StickSettings,
    /// The one-time code, where somebody has put it onto the stick.
    pub pass: Option<PassCode>,
}

/// Whether this installer was started from a stick, and not by the network.
pub fn is_start(root: &Path) -> bool {
    root.join(STARTED_FROM).exists()
}

/// Finds the stick that this installer was started from. One without settings is none:
/// its installer looks for a factory.
///
/// # Errors
/// The settings on it are not readable.
pub async fn started_from(root: &Path) -> Result<Option<Stick>> {
    if !is_start(root) {
        return Ok(None);
    }
    let began = Instant::now();
    loop {
        for partition in partitions(root) {
            if let Some(stick) = read(&partition)? {
                return Ok(Some(stick));
            }
        }
        if began.elapsed() > APPEARS {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn partitions(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join("sys/class/block")) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.path().join("partition").exists())
        .map(|entry| root.join("dev").join(entry.file_name()))
        .collect();
    found.sort();
    found
}

/// Reads a partition, unless it is no stick's.
fn read(partition: &Path) -> Result<Option<Stick>> {
    let Ok(disk) = Disk::open_read_only(partition) else {
        return Ok(None);
    };
    let Ok(system) = Fat::open(disk) else {
        return Ok(None);
    };
    let Ok(bytes) = system.read(STICK_SETTINGS) else {
        return Ok(None);
    };
    let on = |what: &str| format!("{what} on {}", partition.display());
    let settings = serde_json::from_slice(&bytes).with_context(|| on(STICK_SETTINGS))?;
    let pass = match system.read(STICK_PASS) {
        Ok(text) => {
            let text = String::from_utf8(text).map_err(io::Error::other);
            let text = text.with_context(|| on(STICK_PASS))?;
            Some(text.parse().with_context(|| on(STICK_PASS))?)
        }
        Err(_) => None,
    };
    Ok(Some(Stick {
        partition: partition.to_owned(),
        settings,
        pass,
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use slots::Target as _;
    use slots::compose::EspContent;
    use slots::esp::{Birth, EspFile};

    /// A machine's `/sys` and `/dev` with one partition that holds these files.
    pub(crate) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        let sys = root.path().join("sys/class/block/sdb1");
        fs::create_dir_all(&sys).unwrap();
        fs::write(sys.join("partition"), "1\n").unwrap();
        let size = 64 << 20;
        let mut disk = Disk::create(&root.path().join("dev/sdb1"), size).unwrap();
        let files = files.iter().map(|(path, text)| EspFile {
            path: (*path).to_owned(),
            content: EspContent::Bytes(text.as_bytes().to_vec()),
        });
        let birth = Birth::plan(size, 1, files.collect()).unwrap();
        birth.begin(&mut disk).unwrap();
        for file in birth.files() {
            birth.place_bytes(&file.path, &mut disk).unwrap();
        }
        birth.finish(&mut disk).unwrap();
        disk.flush().unwrap();
        root
    }

    fn started_from_a_partition(root: &Path) {
        let variable = root.join(STARTED_FROM);
        fs::create_dir_all(variable.parent().unwrap()).unwrap();
        fs::write(variable, "").unwrap();
    }

    const SETTINGS: &str = r#"{"sky": "https://sky.example:8443", "ca": "PEM"}"#;

    #[tokio::test]
    async fn a_stick_counts_only_when_the_machine_was_started_from_it() {
        let root = machine(&[(STICK_SETTINGS, SETTINGS)]);
        assert_eq!(started_from(root.path()).await.unwrap(), None);
        started_from_a_partition(root.path());
        let stick = started_from(root.path()).await.unwrap().unwrap();
        assert_eq!(stick.settings.sky, "https://sky.example:8443");
        assert_eq!(stick.pass, None);
    }

    #[tokio::test]
    async fn a_code_on_the_stick_needs_no_keyboard_and_a_wrong_one_is_named() {
        let code = PassCode::from_random([7; 8]);
        let typed = format!("{}\r\n", code.as_str().to_lowercase());
        let root = machine(&[(STICK_SETTINGS, SETTINGS), (STICK_PASS, &typed)]);
        started_from_a_partition(root.path());
        let stick = started_from(root.path()).await.unwrap().unwrap();
        assert_eq!(stick.pass, Some(code));
        let root = machine(&[(STICK_SETTINGS, SETTINGS), (STICK_PASS, "hello")]);
        started_from_a_partition(root.path());
        let problem = format!("{:#}", started_from(root.path()).await.unwrap_err());
        assert!(problem.contains(STICK_PASS), "{problem}");
        assert!(problem.contains("expected 12"), "{problem}");
    }
}
