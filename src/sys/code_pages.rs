//! Drops pages of the program's file from memory when they are not needed.
//!
//! Only read-only mappings of the file are touched, so nothing is lost: the next access reads the page again.

use std::{
    ffi::{c_int, c_void},
    fs::File,
    os::fd::AsRawFd as _,
    ptr, slice,
};

/// Unmaps the pages of the program's code and constants; those that are used again come back from the page cache, sixteen
/// at a time. Worth calling when the process becomes idle: most pages mapped by then are not needed to wait.
pub fn forget_code() {
    // SAFETY: the callback keeps nothing of what it is shown.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), ptr::null_mut()) };
}

/// The callback for each object in memory. The program itself comes first, and the result 1 ends the iteration there.
pub unsafe extern "C" fn forget_segments(
    object: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid object with this number of headers.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    // the first segment holds these headers, so it is dropped last
    for header in headers.iter().rev() {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (base + header.p_vaddr).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr + header.p_memsz) & !(PAGE - 1);
        let (Ok(start), Ok(length)) = (start.try_into(), end.saturating_sub(start).try_into())
        else {
            continue;
        };
        // SAFETY: these are private read-only mappings of the file, so dropping their pages loses nothing: the next access
        // reads the file again (madvise(2)).
        unsafe {
            libc::madvise(
                ptr::without_provenance_mut(start),
                length,
                libc::MADV_DONTNEED,
            )
        };
    }
    1
}

/// Drops the unmapped pages of the program's file from the page cache: some two megabytes that were read at the start and
/// count against the cgroup. The kernel would reclaim them too late for sockets: packets that arrive while a cgroup is at
/// its limit are dropped (`posix_fadvise(2)`, the kernel's cgroup-v2.rst on `sock`).
pub fn forget_file() {
    if let Ok(file) = File::open("/proc/self/exe") {
        // SAFETY: advice about an open file; nothing is written or freed.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Bytes of a page in the kernels that this is measured for. A kernel with larger pages refuses a start that is not
/// aligned to them and rounds the length up; segments for aarch64 are linked 64 kB apart, its largest page, so that no
/// rounded length reaches a writable one.
pub const PAGE: libc::Elf64_Addr = 4096;
