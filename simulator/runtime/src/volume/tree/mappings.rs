//! Which files are mapped: what is stored through a mapping need not move a timestamp.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{major, makedev, minor};

/// The files of `device` that some process has mapped shared, by inode: a store through a mapping moves no timestamp but the
/// first time. Read-only mappings count, since they may have been writable. `None`: cannot be told.
pub(super) fn shared_mappings(device: u64) -> Option<HashSet<u64>> {
    let mut mapped = HashSet::new();
    for process in fs::read_dir("/proc").ok()? {
        let process = process.ok()?;
        if !process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // By bytes: a mapped file may have any name.
        let maps = match fs::read(process.path().join("maps")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                continue;
            }
            maps => maps.ok()?,
        };
        for line in maps.split(|&byte| byte == b'\n') {
            // address, permissions, offset, device, inode, name
            let fields: Vec<&str> =
                line.split(|&byte| byte == b' ').take(5).map_while(|field| std::str::from_utf8(field).ok()).collect();
            let [_, permissions, _, on, inode] = fields[..] else { continue };
            if permissions.ends_with('s')
                && let Some((one, two)) = on.split_once(':')
                && let (Ok(one), Ok(two)) = (u32::from_str_radix(one, 16), u32::from_str_radix(two, 16))
                && makedev(one, two) == makedev(major(device), minor(device))
            {
                mapped.insert(inode.parse().ok()?);
            }
        }
    }
    Some(mapped)
}
