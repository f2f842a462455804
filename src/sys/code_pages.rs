//! Pages of the program file that nothing needs for now.

use std::{
    ffi::{c_int, c_void},
    fs::File,
    mem::MaybeUninit,
    os::fd::AsRawFd as _,
    ptr, slice,
};

/// Takes the program's code and constants out of our address space; what is used again comes back from the page cache,
/// sixteen pages at a time. Worth it when nobody is at work: most of what is mapped by then is not needed to wait.
pub fn forget_code() {
    // SAFETY: the callback keeps nothing of what it is shown.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), ptr::null_mut()) };
}

/// Is shown each object in memory, the program itself first, and asks for no more than that.
pub unsafe extern "C" fn forget_segments(
    object: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) hands us a valid object with so many headers.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    // the first segment has these headers, and goes last
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
        // SAFETY: these are private mappings of the file that nobody may write to, so dropping their pages loses nothing:
        // the next touch reads the file again (madvise(2)).
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

/// Gives back the pages of this thread's stack that lie deeper than it stands now: reading a configuration goes deep once, and
/// nothing does again.
pub fn forget_stack() {
    let here = 0_u8;
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the attributes are written before they are read, and only where the first call says so.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return;
        }
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    // what madvise itself stands on is left
    let end = ((&raw const here).addr() & !(STACK_PAGE - 1)).saturating_sub(STACK_PAGE);
    let length = end.saturating_sub(lowest.addr());
    // SAFETY: the stack grows down, so nothing lives in these pages; they come back empty (madvise(2)).
    unsafe { libc::madvise(lowest, length, libc::MADV_DONTNEED) };
}

/// Bytes of a page of the stack.
const STACK_PAGE: usize = 4096;

/// Lets the page cache forget what it holds of the program's file and nobody has mapped: some two megabytes that the
/// start read, and that a cgroup counts. Sockets cannot wait until the kernel takes them back by itself: what comes while a
/// cgroup is at its limit is dropped (`posix_fadvise(2)`, the kernel's cgroup-v2.rst on `sock`).
pub fn forget_file() {
    if let Ok(file) = File::open("/proc/self/exe") {
        // SAFETY: an advice about a file that is open; nothing is written or freed.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Bytes that the kernel maps at a time, on every platform we build for; where pages are larger, `madvise` refuses.
pub const PAGE: libc::Elf64_Addr = 4096;
