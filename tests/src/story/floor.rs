//! What a birth takes beside the least that anybody could do: the same firmware on the same
//! machine, dnsmasq, a `dd` of the same bytes, and the first start.
//!
//! The least asks nobody, checks nothing, makes no keys and reads nothing back. Its bytes
//! are those of a birth of ours that was stopped before its first start, so that the system
//! that starts from them is the same, with the papers of a unit.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::exit;
use edge::runner::Tool;

use super::birth::{Birth, FetchedBy, PATIENCE, code_on_screen};
use super::matrix::bench::{Bench, Place, Shape};
use super::matrix::{hardware, prepare};
use super::releases::{FIRST, STABLE, folder};
use super::world::{CUSTOMER, Powered, World};
use super::{Stage, centre};
use crate::bench::Figure;
use crate::lab::isolation::Inside;
use crate::lab::log::LogTail;
use crate::lab::machine::{DiskKind, Firmware, Machine};
use crate::lab::network::{Network, Wiring};
use crate::lab::prerequisites;
use crate::lab::process::Recipe;
use crate::lab::server::{Ready, Server};
use crate::lab::story::{Output, Step, Story};

/// What a birth may take, compared with the least.
const AIM: f64 = 1.25;
/// The disk is written in blocks of this size; those that are zero are left out.
const BLOCK: u64 = 64 << 10;
/// Where nginx gives the bytes.
const PORT: u16 = 8000;
/// What dnsmasq names to the firmware.
const BOOT_FILE: &str = "floor.efi";

/// Measures inside a laboratory.
///
/// # Errors
/// Something failed that was to be measured.
pub async fn measure(
    inside: &Inside,
    stage: &Stage,
    output: Output,
) -> anyhow::Result<Vec<Figure>> {
    prerequisites::require("nginx", "nginx-light")?;
    let mut story = Story::new(&["sky", "release", "ours", "image", "floor"], output);
    let world = prepare(inside, stage, &mut story).await?;
    let title = "Ours: from power-on to in service";
    let ours = story
        .step("ours", title, async |step| ours(&world, step).await)
        .await?;
    let title = "Image: a birth that is stopped before the first start";
    let image = story
        .step("image", title, async |step| image(&world, step).await)
        .await?;
    let title = "Floor: dnsmasq, dd of the same bytes, the first start";
    let floor = story
        .step("floor", title, async |step| {
            floor(&world, &image, step).await
        })
        .await?;
    let beside = |what: &str, ours: Duration, floor: Duration, aim| Figure {
        what: what.to_owned(),
        unit: "s",
        ours: ours.as_secs_f64(),
        peer: Some(floor.as_secs_f64()),
        aim,
    };
    Ok(vec![
        beside(
            "power-on to a disk that is written",
            ours.written,
            floor.written,
            None,
        ),
        beside(
            "from there to in service",
            ours.start(),
            floor.start(),
            None,
        ),
        beside(
            "power-on to in service",
            ours.in_service,
            floor.in_service,
            Some(AIM),
        ),
    ])
}

/// Times since power-on.
#[derive(Debug, Clone, Copy)]
struct Times {
    written: Duration,
    in_service: Duration,
}

impl Times {
    fn start(self) -> Duration {
        self.in_service.saturating_sub(self.written)
    }
}

/// A bench with a factory, and a machine that is powered on.
async fn begin(
    world: &World,
    number: u8,
    name: &str,
    step: &mut Step,
) -> anyhow::Result<(Bench, Powered, String)> {
    let stage = &world.stage;
    let unit = format!("{CUSTOMER}/{name}");
    centre::unit(stage, &world.operator, &world.files, step, &unit, STABLE).await?;
    let at = fresh(stage, name)?;
    let place = Place {
        number,
        folder: &at,
        channel: STABLE,
        local_boot: None,
    };
    let bench = Bench::set_up(Shape::Plain, stage, place, step).await?;
    let hardware = hardware(number, Firmware::Ovmf, DiskKind::Virtio);
    let machine = Machine::build(hardware, &at.join("machine"))?;
    let port = bench.port(&format!("m{number}")).await?;
    let powered = Powered::plugged(machine, port, world.accelerator).await?;
    Ok((bench, powered, unit))
}

fn fresh(stage: &Stage, name: &str) -> anyhow::Result<PathBuf> {
    let folder = stage.build.join("floor").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make folder {}", folder.display()))?;
    Ok(folder)
}

async fn ours(world: &World, step: &mut Step) -> anyhow::Result<Times> {
    let (bench, mut powered, unit) = begin(world, 1, "ours", step).await?;
    let birth = Birth {
        operator: &world.operator,
        unit: &unit,
        release: FIRST,
        capture: bench.capture(),
        fetched_by: FetchedBy::Tftp,
        pass: None,
        terms: &[],
    };
    let (_, split) = birth.watch_split(&mut powered.machine, step).await?;
    let times = Times {
        written: split.end_of("read-back").context("no read-back")?,
        in_service: powered.machine.uptime(),
    };
    powered.off().await?;
    bench.clear_away().await?;
    Ok(times)
}

/// What the least writes: the ranges of the disk, and their bytes in one file.
#[derive(Debug)]
struct Image {
    bytes: PathBuf,
    ranges: Vec<Blocks>,
    unit: String,
}

/// Some blocks of a disk, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    first: u64,
    count: u64,
}

async fn image(world: &World, step: &mut Step) -> anyhow::Result<Image> {
    let (bench, mut powered, unit) = begin(world, 2, "floor", step).await?;
    let machine = &mut powered.machine;
    let mut console = LogTail::from_start(&machine.serial_log());
    step.waiting("a birth");
    machine
        .says(&mut console, &["leapserv: code "], PATIENCE)
        .await?;
    let code = code_on_screen(&machine.serial_log())?;
    let approve = ["machine", "approve", &code, "--unit", &unit];
    world.operator.run(step, &approve).await?;
    let texts = ["leapserv: born ", "leapserv: error"];
    let which = machine.says(&mut console, &texts, PATIENCE).await?;
    ensure!(which == 0, "the installer gave up; see its serial log");
    let machine = powered.off().await?;
    bench.clear_away().await?;
    let bytes = fresh(&world.stage, "www")?.join("floor.img");
    let ranges = pack(&machine.disk(0), &bytes)?;
    let size = fs::metadata(&bytes).context("look at the image")?.len();
    step.evidence(format!(
        "the disk holds {} MiB in {} ranges",
        size >> 20,
        ranges.len()
    ));
    Ok(Image {
        bytes,
        ranges,
        unit,
    })
}

/// Puts the blocks of a disk that are not zero into one file.
fn pack(disk: &Path, to: &Path) -> anyhow::Result<Vec<Blocks>> {
    let mut from = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
    let mut to = File::create(to).with_context(|| format!("make {}", to.display()))?;
    let size = from.metadata().context("look at the disk")?.len();
    let mut ranges: Vec<Blocks> = Vec::new();
    let mut block = vec![0; usize::try_from(BLOCK).context("size of a block")?];
    let mut at = 0;
    while at < size {
        // Past what was never written.
        at = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK * BLOCK,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).context("look for data of the disk"),
        };
        from.seek(SeekFrom::Start(at)).context("read the disk")?;
        from.read_exact(&mut block).context("read the disk")?;
        let number = at / BLOCK;
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        to.write_all(&block).context("write the image")?;
        match ranges.last_mut() {
            Some(last) if last.first + last.count == number => last.count += 1,
            _ => ranges.push(Blocks {
                first: number,
                count: 1,
            }),
        }
    }
    Ok(ranges)
}

async fn floor(world: &World, image: &Image, step: &mut Step) -> anyhow::Result<Times> {
    let at = fresh(&world.stage, "dnsmasq")?;
    let server = Ipv4Addr::new(10, 80, 3, 1);
    let network = Network::create("floor", server, 24, Wiring::detect()).await?;
    let installer = folder(world, FIRST).join("installer.efi");
    let installer = fs::read(&installer).context("read the installer")?;
    let program = with_more_initrd(&installer, &overlay(&at, server, &image.ranges)?)
        .context("the installer: expected a unified kernel image")?;
    let tftp = at.join("tftp");
    fs::create_dir(&tftp).context("make a folder for TFTP")?;
    fs::write(tftp.join(BOOT_FILE), program).context("write the boot file")?;
    let nginx = nginx(&at, &image.bytes, server, step).await?;
    let dnsmasq = dnsmasq(&at, &tftp, server, step).await?;

    // The machine that the papers are for, with a new disk and fresh variables.
    let hardware = hardware(2, Firmware::Ovmf, DiskKind::Virtio);
    let machine = Machine::build(hardware, &at.join("machine"))?;
    let mut powered = Powered::on(machine, &network, world.accelerator).await?;
    let machine = &mut powered.machine;
    let mut console = LogTail::from_start(&machine.serial_log());
    step.waiting("firmware, kernel, dd");
    machine
        .says(&mut console, &["floor: begun"], PATIENCE)
        .await?;
    // From now on the network says "boot your disk", as ours does.
    let next = at.join("next");
    fs::write(&next, pxe::local_boot::PROGRAM)
        .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&next, tftp.join(BOOT_FILE)))
        .context("change the boot file")?;
    let texts = ["floor: written", "floor: failed"];
    let which = machine.says(&mut console, &texts, PATIENCE).await?;
    ensure!(which == 0, "the disk was not written; see the serial log");
    let written = machine.uptime();
    step.waiting("the first start");
    let conditions = ["in-service"];
    world
        .operator
        .wait_for(step, &image.unit, &conditions, 300)
        .await?;
    let in_service = machine.uptime();
    step.evidence(format!(
        "{:.0} s after power-on the disk was written, {:.0} s after it the unit was in service",
        written.as_secs_f64(),
        in_service.as_secs_f64()
    ));
    powered.off().await?;
    dnsmasq.kill().await?;
    nginx.kill().await?;
    network.remove().await?;
    Ok(Times {
        written,
        in_service,
    })
}

/// The archive that makes the installer's first file system one with a `dd` in it.
fn overlay(at: &Path, server: Ipv4Addr, ranges: &[Blocks]) -> anyhow::Result<Vec<u8>> {
    let folder = at.join("overlay");
    fs::create_dir(&folder).context("make a folder for the archive")?;
    for (name, text) in [
        ("init", script(server, ranges)),
        (
            "floor-address",
            "#!/usr/bin/busybox sh\n\
             [ \"$1\" != bound ] || exec /usr/bin/busybox ip addr add $ip/$mask dev $interface\n"
                .to_owned(),
        ),
    ] {
        let file = folder.join(name);
        fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Tool::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=+0:+0"])
        .current_dir(&folder)
        .stdin_bytes("init\nfloor-address\n")
        .output()
}

fn script(server: Ipv4Addr, ranges: &[Blocks]) -> String {
    let mut writes = String::new();
    for Blocks { first, count } in ranges {
        writes.push_str(&format!("write {first} {count} &&\n"));
    }
    format!(
        "#!/usr/bin/busybox sh\n\
         b=/usr/bin/busybox\n\
         $b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys\n\
         $b mount -t devtmpfs dev /dev; exec >/dev/ttyS0 2>&1\n\
         echo floor: begun\n\
         for module in virtio_pci virtio_net virtio_blk; do /usr/bin/modprobe $module; done\n\
         until [ -e /dev/vda ] && [ -e /sys/class/net/eth0 ]; do $b usleep 10000; done\n\
         $b ip link set eth0 up\n\
         $b udhcpc -q -n -i eth0 -s /floor-address\n\
         write() {{ $b dd of=/dev/vda bs={BLOCK} iflag=fullblock seek=$1 count=$2 2>/dev/null; }}\n\
         $b wget -q -O - http://{server}:{PORT}/floor.img | {{\n{writes}$b sync; }} &&\n\
         echo floor: written || echo floor: failed\n\
         $b reboot -f\n"
    )
}

/// A unified kernel image with more at the end of its first file system. The section goes
/// behind all others, where there is room; `None` if the bytes are no such image.
fn with_more_initrd(image: &[u8], more: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let short = |at: usize| {
        Some(usize::from(u16::from_le_bytes(
            image.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let header = word(0x3c)?;
    let optional = header + 24;
    let (alignment, in_file) = (word(optional + 32)?, word(optional + 36)?);
    let table = optional + short(header + 20)?;
    let sections = (0..short(header + 6)?).map(|number| table + 40 * number);
    let sections: Vec<_> = sections.collect();
    let initrd = *sections
        .iter()
        .find(|at| image.get(**at..**at + 8) == Some(b".initrd\0"))?;
    let (length, from) = (word(initrd + 8)?, word(initrd + 20)?);
    let mut content = image.get(from..from + length)?.to_vec();
    // The kernel looks for the next archive at a multiple of four.
    content.resize(content.len().next_multiple_of(4), 0);
    content.extend(more);
    let mut end = 0;
    for at in &sections {
        end = end.max(word(at + 12)? + word(at + 8)?);
    }
    let place = end.next_multiple_of(alignment);

    let mut out = image.to_vec();
    out.resize(out.len().next_multiple_of(in_file), 0);
    let offset = out.len();
    let length = content.len();
    out.extend(content);
    out.resize(out.len().next_multiple_of(in_file), 0);
    let raw = out.len() - offset;
    let size = (place + length).next_multiple_of(alignment);
    for (at, value) in [
        (initrd + 8, length),
        (initrd + 12, place),
        (initrd + 16, raw),
        (initrd + 20, offset),
        (optional + 56, size),
    ] {
        let value = u32::try_from(value).ok()?;
        out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Some(out)
}

async fn nginx(
    at: &Path,
    image: &Path,
    server: Ipv4Addr,
    step: &mut Step,
) -> anyhow::Result<Server> {
    let root = image.parent().context("the image lies in a folder")?;
    let absolute = |path: &Path| std::path::absolute(path).context("name a folder");
    let (work, root) = (absolute(at)?, absolute(root)?);
    let text = format!(
        "daemon off; master_process off; user root; pid {work}/nginx.pid; error_log stderr;\n\
         events {{}}\n\
         http {{ access_log off; sendfile on; tcp_nopush on;\n\
           client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};\n\
           uwsgi_temp_path {work}; scgi_temp_path {work};\n\
           server {{ listen {server}:{PORT}; root {root}; }} }}\n",
        work = work.display(),
        root = root.display(),
    );
    let config = work.join("nginx.conf");
    fs::write(&config, text).context("write nginx's configuration")?;
    let shown = config.display().to_string();
    step.command("nginx", ["-c", &shown]);
    let recipe = Recipe::new(
        "nginx",
        Tool::new("nginx").args(["-c", &shown]),
        at.join("nginx.log"),
    );
    Server::start(recipe, Ready::Port((server, PORT).into()))
        .await
        .map_err(|error| exit::hint(error, "as root, run: apt-get install nginx-light"))
}

async fn dnsmasq(
    at: &Path,
    tftp: &Path,
    server: Ipv4Addr,
    step: &mut Step,
) -> anyhow::Result<Server> {
    let [a, b, c, _] = server.octets();
    let tftp = std::path::absolute(tftp).context("name a folder")?;
    let arguments = [
        "--no-daemon".to_owned(),
        "--port=0".to_owned(),
        "--user=root".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--bind-interfaces".to_owned(),
        "--dhcp-authoritative".to_owned(),
        "--no-ping".to_owned(),
        "--interface=floor".to_owned(),
        format!("--dhcp-range={a}.{b}.{c}.100,{a}.{b}.{c}.150"),
        "--dhcp-leasefile=/dev/null".to_owned(),
        "--enable-tftp".to_owned(),
        format!("--tftp-root={}", tftp.display()),
        format!("--dhcp-boot={BOOT_FILE}"),
    ];
    step.command("dnsmasq", &arguments);
    let tool = Tool::new("dnsmasq").args(&arguments);
    let recipe = Recipe::new("dnsmasq", tool, at.join("dnsmasq.log"));
    Server::start(recipe, Ready::Line("IP range".to_owned())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_are_zero_are_left_out_and_neighbours_are_one_range() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let mut file = File::create(&disk).unwrap();
        file.set_len(64 * BLOCK).unwrap();
        for (block, byte) in [(0, 1), (1, 2), (2, 0), (9, 3)] {
            file.seek(SeekFrom::Start(block * BLOCK)).unwrap();
            file.write_all(&vec![byte; usize::try_from(BLOCK).unwrap()])
                .unwrap();
        }
        let packed = folder.path().join("packed");
        let ranges = pack(&disk, &packed).unwrap();
        let range = |first, count| Blocks { first, count };
        assert_eq!(ranges, [range(0, 2), range(9, 1)]);
        let bytes = fs::read(packed).unwrap();
        let each: Vec<_> = bytes.chunks(1 << 16).map(|block| block[7]).collect();
        assert_eq!(each, [1, 2, 3]);
        let script = script(Ipv4Addr::LOCALHOST, &ranges);
        assert!(script.contains("write 0 2 &&\nwrite 9 1 &&\n"), "{script}");
    }

    /// A header, one section before and one after the first file system.
    fn unified_kernel_image() -> Vec<u8> {
        let mut image = vec![0; 0x400];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x86, &3u16.to_le_bytes());
        put(0x94, &0xf0u16.to_le_bytes());
        put(0x98 + 32, &0x1000u32.to_le_bytes());
        put(0x98 + 36, &0x200u32.to_le_bytes());
        put(0x98 + 56, &0x5000u32.to_le_bytes());
        for (number, (name, size, place, offset)) in [
            (b".osrel\0\0", 5u32, 0x2000u32, 0x400u32),
            (b".initrd\0", 6, 0x3000, 0x600),
            (b".linux\0\0", 7, 0x4000, 0x800),
        ]
        .into_iter()
        .enumerate()
        {
            let at = 0x98 + 0xf0 + 40 * number;
            put(at, name);
            for (field, value) in [(8, size), (12, place), (16, 0x200), (20, offset)] {
                put(at + field, &value.to_le_bytes());
            }
        }
        for content in [b"osrel", b"initr", b"linux"] {
            let start = image.len();
            image.extend(content);
            image.resize(start + 0x200, 0);
        }
        image
    }

    #[test]
    fn the_first_file_system_grows_and_the_rest_stays() {
        let before = unified_kernel_image();
        let after = with_more_initrd(&before, b"more").unwrap();
        let initrd = 0x98 + 0xf0 + 40;
        let word = |at: usize| u32::from_le_bytes(after[at..at + 4].try_into().unwrap());
        assert_eq!((word(initrd + 8), word(initrd + 12)), (12, 0x5000));
        let offset = usize::try_from(word(initrd + 20)).unwrap();
        assert_eq!(&after[offset..offset + 12], b"initr\0\0\0more");
        assert_eq!(word(0x98 + 56), 0x6000, "size of the image");
        assert_eq!(after[0x800..0xa00], before[0x800..0xa00]);
        assert_eq!(with_more_initrd(b"no image", b"more"), None);
    }
}
