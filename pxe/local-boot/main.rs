//! The UEFI program that a machine boots from the network to go on with its disk.
//!
//! Firmware that boots "network first" tries PXE over IPv4, PXE over IPv6, HTTP
//! over IPv4 and HTTP over IPv6 before it comes to the disk, about a minute for
//! each that gets no answer. This program is answered to the first of them. It
//! starts `\EFI\BOOT\BOOTX64.EFI` of a fixed disk; where there is none, it returns
//! and the firmware goes on with its own list.
//!
//! It is compiled for the build host's own target and wrapped as a UEFI
//! application by `build.rs`, so that no further Rust target has to be installed.
//! It uses neither heap nor formatting, and no static that holds an address:
//! nothing has to be relocated.

#![no_std]
#![no_main]

use core::ffi::c_void;
use core::ptr::null_mut;

type Handle = *mut c_void;
type Status = usize;

const SUCCESS: Status = 0;
const NOT_FOUND: Status = 14 | 1 << (usize::BITS - 1);
const ALL_HANDLES: u32 = 0;
const BY_PROTOCOL: u32 = 2;
const LOADER_DATA: u32 = 2;

#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

static FILE_SYSTEM: Guid = Guid(
    0x964e_5b22,
    0x6459,
    0x11d2,
    [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);
static BLOCK_IO: Guid = Guid(
    0x964e_5b21,
    0x6459,
    0x11d2,
    [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);
static DEVICE_PATH: Guid = Guid(
    0x0957_6e91,
    0x6d3f,
    0x11d2,
    [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);

/// UEFI specification, 4.3.
#[repr(C)]
struct SystemTable {
    header: [u64; 3],
    vendor: *mut u16,
    revision: u32,
    console_in_handle: Handle,
    console_in: *mut c_void,
    console_out_handle: Handle,
    console_out: *mut TextOutput,
    standard_error_handle: Handle,
    standard_error: *mut c_void,
    runtime_services: *mut c_void,
    boot_services: *mut BootServices,
}

/// UEFI specification, 12.4.
#[repr(C)]
struct TextOutput {
    reset: usize,
    output_string: unsafe extern "efiapi" fn(*mut TextOutput, *const u16) -> Status,
}

/// UEFI specification, 4.4: only what is used has a type.
#[repr(C)]
struct BootServices {
    header: [u64; 3],
    before_pool: [usize; 5],
    allocate_pool: unsafe extern "efiapi" fn(u32, usize, *mut *mut u8) -> Status,
    before_protocol: [usize; 10],
    handle_protocol: unsafe extern "efiapi" fn(Handle, *const Guid, *mut *mut c_void) -> Status,
    before_image: [usize; 5],
    load_image: unsafe extern "efiapi" fn(
        u8,
        Handle,
        *const u8,
        *const c_void,
        usize,
        *mut Handle,
    ) -> Status,
    start_image: unsafe extern "efiapi" fn(Handle, *mut usize, *mut *mut u16) -> Status,
    exit: usize,
    unload_image: unsafe extern "efiapi" fn(Handle) -> Status,
    before_connect: [usize; 4],
    connect_controller:
        unsafe extern "efiapi" fn(Handle, *const Handle, *const c_void, u8) -> Status,
    before_locate: [usize; 5],
    locate_handle_buffer: unsafe extern "efiapi" fn(
        u32,
        *const Guid,
        *const c_void,
        *mut usize,
        *mut *mut Handle,
    ) -> Status,
}

/// UEFI specification, 13.9.
#[repr(C)]
struct BlockIo {
    revision: u64,
    media: *const Media,
}

#[repr(C)]
struct Media {
    id: u32,
    removable: u8,
    present: u8,
    partition: u8,
}

/// An ASCII text as the zero-terminated UTF-16 that UEFI wants.
const fn utf16<const N: usize>(text: &[u8]) -> [u16; N] {
    assert!(text.len() < N, "room for the text and its zero");
    let mut out = [0; N];
    let mut at = 0;
    while at < text.len() {
        out[at] = text[at] as u16;
        at += 1;
    }
    out
}

#[cfg(target_arch = "x86_64")]
static PATH: [u16; 22] = utf16(b"\\EFI\\BOOT\\BOOTX64.EFI");
#[cfg(target_arch = "aarch64")]
static PATH: [u16; 23] = utf16(b"\\EFI\\BOOT\\BOOTAA64.EFI");

static STARTING: [u16; 64] = utf16(b"LeapServ: the network says to boot the disk\r\n");
static NOTHING: [u16; 64] = utf16(b"LeapServ: no disk has a boot loader, back to firmware\r\n");

/// Entry point, called by the firmware.
///
/// # Safety
/// Both arguments are valid, as the firmware promises.
#[unsafe(no_mangle)]
unsafe extern "efiapi" fn efi_main(image: Handle, system: *mut SystemTable) -> Status {
    unsafe {
        let services = &*(*system).boot_services;
        say(system, STARTING.as_ptr());
        // Most firmware has connected the disks by now. One that boots "fast" has
        // connected the network alone.
        start_disk(services, image);
        connect_all(services);
        start_disk(services, image);
        say(system, NOTHING.as_ptr());
    }
    NOT_FOUND
}

unsafe fn say(system: *mut SystemTable, text: *const u16) {
    unsafe {
        let out = (*system).console_out;
        if !out.is_null() {
            ((*out).output_string)(out, text);
        }
    }
}

unsafe fn connect_all(services: &BootServices) {
    unsafe {
        let mut count = 0;
        let mut handles = null_mut();
        let found = (services.locate_handle_buffer)(
            ALL_HANDLES,
            null_mut(),
            null_mut(),
            &mut count,
            &mut handles,
        );
        if found != SUCCESS {
            return;
        }
        let mut at = 0;
        while at < count {
            (services.connect_controller)(*handles.add(at), null_mut(), null_mut(), 1);
            at += 1;
        }
    }
}

/// Starts the loader of each fixed disk in turn; returns if none stays.
unsafe fn start_disk(services: &BootServices, image: Handle) {
    unsafe {
        let mut count = 0;
        let mut handles = null_mut();
        let found = (services.locate_handle_buffer)(
            BY_PROTOCOL,
            &FILE_SYSTEM,
            null_mut(),
            &mut count,
            &mut handles,
        );
        if found != SUCCESS {
            return;
        }
        let mut at = 0;
        while at < count {
            let handle = *handles.add(at);
            at += 1;
            if !is_fixed(services, handle) {
                continue;
            }
            let path = loader_path(services, handle);
            if path.is_null() {
                continue;
            }
            let mut loader = null_mut();
            if (services.load_image)(0, image, path, null_mut(), 0, &mut loader) == SUCCESS {
                (services.start_image)(loader, null_mut(), null_mut());
            } else if !loader.is_null() {
                // Secure Boot: loaded, and not allowed to run.
                (services.unload_image)(loader);
            }
        }
    }
}

/// A stick or a virtual CD must not be started because the disk is empty.
unsafe fn is_fixed(services: &BootServices, handle: Handle) -> bool {
    unsafe {
        let mut block: *mut c_void = null_mut();
        if (services.handle_protocol)(handle, &BLOCK_IO, &mut block) != SUCCESS {
            return false;
        }
        let media = &*(*block.cast::<BlockIo>()).media;
        media.removable == 0 && media.present != 0
    }
}

/// Returns the device path of the boot loader on a file system: the path of the
/// file system with one node more. Null if there is no memory.
unsafe fn loader_path(services: &BootServices, handle: Handle) -> *const u8 {
    unsafe {
        let mut device: *mut c_void = null_mut();
        if (services.handle_protocol)(handle, &DEVICE_PATH, &mut device) != SUCCESS {
            return null_mut();
        }
        let device = device.cast::<u8>();
        // Nodes are type, subtype, length in two bytes; type 0x7f ends the path.
        let mut length = 0;
        while *device.add(length) != 0x7f {
            let node = device.add(length);
            length += *node.add(2) as usize | (*node.add(3) as usize) << 8;
        }
        let file = 4 + size_of_val(&PATH);
        let mut out: *mut u8 = null_mut();
        if (services.allocate_pool)(LOADER_DATA, length + file + 4, &mut out) != SUCCESS {
            return null_mut();
        }
        copy(out, device, length);
        // Media device path, file path.
        let node = out.add(length);
        copy(node, [4, 4, file as u8, 0].as_ptr(), 4);
        copy(node.add(4), PATH.as_ptr().cast(), size_of_val(&PATH));
        copy(node.add(file), [0x7f, 0xff, 4, 0].as_ptr(), 4);
        out
    }
}

/// Volatile, or the compiler would turn it into a call of `memcpy`, which nobody
/// provides here.
unsafe fn copy(to: *mut u8, from: *const u8, count: usize) {
    let mut at = 0;
    while at < count {
        unsafe { to.add(at).write_volatile(from.add(at).read()) };
        at += 1;
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
