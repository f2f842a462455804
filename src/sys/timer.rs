//! A timer of the kernel, as a descriptor that is readable when its time has come (`timerfd_create(2)`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    time::Duration,
};

/// A longer span is cut to this, which is 34 years.
const MOST: Duration = Duration::from_secs(1 << 30);

/// A timer that does not run; reading its descriptor never blocks.
///
/// # Errors
/// There is no descriptor or no memory left.
pub fn timer() -> io::Result<OwnedFd> {
    let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
    // SAFETY: timerfd_create takes two numbers and touches no memory.
    match unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor was just made, and has no other owner.
        descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

/// Lets a timer run out once, after `span`, whatever it was set to; a zero span runs out at once.
pub fn set(timer: &impl AsFd, span: Duration) {
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut setting = libc::itimerspec {
        it_interval: zero,
        it_value: zero,
    };
    // zero would stop the timer; seconds may have 32 bits
    let span = span.clamp(Duration::from_nanos(1), MOST);
    setting.it_value.tv_sec = span.as_secs().try_into().unwrap_or(0);
    setting.it_value.tv_nsec = span.subsec_nanos().into();
    let descriptor = timer.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a live itimerspec, which is only read; the old setting is not asked for.
    unsafe { libc::timerfd_settime(descriptor, 0, &raw const setting, ptr::null_mut()) };
}
