//! What composing and serving disks costs, beside nginx with a flat file.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use edge::exit;
use edge::progress::Bar;
use edge::runner::Tool;
use model::release::{Artifact, CustomerLayer};
use model::{Digest, Signer};
use serde_json::Value;

use super::Figure;
use crate::lab::wait;
use crate::story::{FIRST, Stage};

/// Customers whose disks are composed.
const CUSTOMERS: usize = 10_000;
/// Size of the disks.
const SIZE: &str = "10G";
/// How often each of the two servers streams the disk; the best counts.
const ROUNDS: usize = 3;

/// What composing is measured on.
#[derive(Debug, Clone)]
pub struct Material {
    /// The folder of `leap-image`.
    pub programs: PathBuf,
    /// A release's folder.
    pub release: PathBuf,
    /// The folder of keys that release and layers are signed with.
    pub keys: PathBuf,
    /// A folder for layers, disks and the cache. What is made in it is removed.
    pub work: PathBuf,
}

impl Material {
    /// The first release of a story that was told.
    ///
    /// # Errors
    /// The folder that we run in has no name.
    pub fn of_story(stage: &Stage) -> anyhow::Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).context("name a folder");
        Ok(Self {
            programs: absolute(&stage.programs)?,
            release: absolute(&stage.build.join("releases").join(FIRST))?,
            keys: absolute(&stage.build.join("keys"))?,
            work: absolute(&stage.build)?,
        })
    }
}

/// Composes the disks of ten thousand customers, takes the first byte of one, and streams
/// a whole one, beside nginx with the same bytes in a flat file.
///
/// # Errors
/// A program is missing or failed, or what was served is not what was written.
pub async fn compose(material: &Material) -> anyhow::Result<Vec<Figure>> {
    let work = tempfile::Builder::new()
        .prefix("compose-")
        .tempdir_in(&material.work)
        .with_context(|| format!("make a folder in {}", material.work.display()))?;
    let work = work.path();
    layers(&material.keys, &work.join("layers"))?;
    let image = |subcommand: &str| {
        Tool::new(material.programs.join("leap-image"))
            .arg(subcommand)
            .arg(&material.release)
            .arg("--trust-root")
            .arg(material.keys.join("trust-root.json"))
            .arg("--cache")
            .arg(work.join("cache"))
            .args(["--size", SIZE, "--layers"])
            .arg(work.join("layers"))
    };
    // Laid ready once, so that the figures are those of composing.
    let flat = work.join("disk.raw");
    let written = image("compose")
        .args(["--customer", "c0", "--json", "--out"])
        .arg(&flat)
        .text()?;
    let written: Value = serde_json::from_str(&written).context("leap-image: expected JSON")?;

    let bar = Bar::spinner("10,000 disks");
    let server = image("serve").args(["--listen", "127.0.0.1:0", "--json"]);
    let server = Server::start(&server)?;
    bar.finish();
    let number = |value: &Value, key: &str| {
        value[key]
            .as_f64()
            .with_context(|| format!("leap-image: no {key}"))
    };
    let composed = number(&server.ready, "disks")?;
    ensure!(composed >= 10_000.0, "only {composed} disks composed");
    let url = server.ready["url"].as_str().context("leap-image: no url")?;
    let address = url.trim_start_matches("http://").to_owned();

    let mut first: Vec<f64> = (1..=101)
        .map(|customer| first_byte(&address, &format!("/disk/c{customer}.raw")))
        .collect::<anyhow::Result<_>>()?;
    first.sort_by(f64::total_cmp);
    let nginx = Nginx::start(work, &flat).await?;
    let size = fs::metadata(&flat).context("look at the disk")?.len();
    compare(&address, &flat, size)?;
    let (mut ours, mut theirs) = (0f64, 0f64);
    let bar = Bar::spinner("streams");
    for _ in 0..ROUNDS {
        ours = ours.max(stream(&address, "/disk/c0.raw", size)?);
        theirs = theirs.max(stream(&nginx.address, "/disk.raw", size)?);
    }
    bar.finish();
    let mib = f64::from(1 << 20);
    let figure = |what: &str, unit, ours, aim| Figure {
        what: what.to_owned(),
        unit,
        ours,
        peer: None,
        aim: Some(aim),
    };
    Ok(vec![
        figure(
            "composed disk, first byte, median of 101",
            "ms",
            first[50] * 1e3,
            20.0,
        ),
        figure(
            "composed disk, first byte, slowest of 101",
            "ms",
            first[100] * 1e3,
            20.0,
        ),
        figure(
            "10,000 disks composed",
            "s",
            number(&server.ready, "composed")?,
            60.0,
        ),
        figure(
            "kept for each, at most",
            "KiB",
            number(&server.ready, "bytes_each")? / 1024.0,
            64.0,
        ),
        figure(
            "peak memory, 10,000 disks",
            "MiB",
            number(&server.ready, "peak_memory")? / mib,
            64.0,
        ),
        figure(
            "peak memory, one disk to a file",
            "MiB",
            number(&written, "peak_memory")? / mib,
            64.0,
        ),
        Figure {
            peer: Some(theirs),
            aim: Some(theirs * 0.9),
            ..figure(
                "streaming a disk of 10 GiB, beside nginx",
                "MiB/s",
                ours,
                0.0,
            )
        },
    ])
}

/// Makes and signs a layer for each customer.
fn layers(keys: &Path, folder: &Path) -> anyhow::Result<()> {
    let key = keys.join("configuration.pem");
    let key = fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
    let signer = Signer::from_pem(&key).context("the configuration key")?;
    for number in 0..CUSTOMERS {
        let name = format!("c{number}");
        let mut image = vec![0u8; 4096];
        image[..name.len()].copy_from_slice(name.as_bytes());
        let layer = CustomerLayer {
            customer: name.parse().context("a customer's name")?,
            version: 1,
            image: Artifact {
                path: "layer.raw".to_owned(),
                size: 4096,
                sha256: Digest::of(&image),
            },
            components: None,
        };
        let place = folder.join(&name);
        let write = || -> anyhow::Result<()> {
            fs::create_dir_all(&place)?;
            fs::write(place.join("layer.raw"), &image)?;
            let signed = serde_json::to_vec(&signer.sign(&layer))?;
            Ok(fs::write(place.join("layer.json"), signed)?)
        };
        write().with_context(|| format!("make the layer {}", place.display()))?;
    }
    Ok(())
}

/// A program that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Server {
    ready: Value,
    _running: Running,
}

impl Server {
    fn start(tool: &Tool) -> anyhow::Result<Self> {
        let mut command = tool.command();
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", tool.line()))?;
        let out = child.stdout.take().context("its standard output")?;
        let running = Running(child);
        let mut text = String::new();
        for line in BufReader::new(out).lines() {
            let line = line.context("read what the server says")?;
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        let ready = serde_json::from_str(&text).context("leap-image serve: expected JSON")?;
        Ok(Self {
            ready,
            _running: running,
        })
    }
}

struct Nginx {
    address: String,
    _running: Running,
}

impl Nginx {
    async fn start(work: &Path, flat: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("find a free port")?
            .port();
        let root = flat.parent().context("the disk lies in a folder")?;
        let text = format!(
            "daemon off; master_process off; pid {work}/nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off; sendfile on; tcp_nopush on;\n\
               client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};\n\
               uwsgi_temp_path {work}; scgi_temp_path {work};\n\
               server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n",
            work = work.display(),
            root = root.display(),
        );
        // One process, so that nothing of it outlives this one.
        let config = work.join("nginx.conf");
        fs::write(&config, text).context("write nginx's configuration")?;
        let child = Tool::new("nginx")
            .arg("-c")
            .arg(&config)
            .command()
            .stderr(Stdio::null())
            .spawn()
            .context("start nginx")
            .map_err(|error| exit::hint(error, "as root, run: apt-get install nginx-light"))?;
        let running = Running(child);
        let address = format!("127.0.0.1:{port}");
        wait::until("nginx to listen", Duration::from_secs(20), || {
            let listens = TcpStream::connect(&address).is_ok();
            async move { Ok(listens.then_some(())) }
        })
        .await?;
        Ok(Self {
            address,
            _running: running,
        })
    }
}

/// Asks for a path and returns the connection, behind the head of the answer.
fn ask(address: &str, path: &str, headers: &str) -> anyhow::Result<BufReader<TcpStream>> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("ask")?;
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let mut line = String::new();
    stream.read_line(&mut line).context("read the answer")?;
    if !line.starts_with("HTTP/1.1 20") {
        bail!("{path}: answered {line:?}");
    }
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).context("read the answer")?;
    }
    Ok(stream)
}

/// Seconds from the request for a disk that nobody has asked for to its first byte.
fn first_byte(address: &str, path: &str) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut stream = ask(address, path, "Range: bytes=0-511\r\n")?;
    stream.read_exact(&mut [0]).context("read the first byte")?;
    Ok(begun.elapsed().as_secs_f64())
}

/// MiB a second of a whole stream.
fn stream(address: &str, path: &str, size: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut stream = ask(address, path, "")?.into_inner();
    let mut buffer = vec![0; 1 << 20];
    let mut left = size;
    loop {
        let count = stream.read(&mut buffer).context("read the stream")?;
        if count == 0 {
            break;
        }
        left = left.saturating_sub(count as u64);
    }
    // What the head took along lay in the buffer.
    ensure!(left <= 1 << 20, "{path}: {left} bytes too few");
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let mib = size as f64 / f64::from(1 << 20);
    Ok(mib / begun.elapsed().as_secs_f64())
}

/// Compares what is served with what was written where a disk differs from zeros.
fn compare(address: &str, flat: &Path, size: u64) -> anyhow::Result<()> {
    let file = File::open(flat).context("open the disk")?;
    for at in [
        0,
        1 << 20,
        1 << 30,
        (1 << 30) + (40 << 20),
        size - (1 << 20),
    ] {
        let headers = format!("Range: bytes={at}-{}\r\n", at + (1 << 20) - 1);
        let mut served = Vec::new();
        ask(address, "/disk/c0.raw", &headers)?
            .read_to_end(&mut served)
            .context("read a range")?;
        let mut written = vec![0; 1 << 20];
        file.read_exact_at(&mut written, at)
            .context("read the disk")?;
        ensure!(served == written, "the disk differs at {at}");
    }
    Ok(())
}
