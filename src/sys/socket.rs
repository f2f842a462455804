//! Socket options and queries that socket2 does not offer. None of them blocks; where the kernel refuses one, nothing is
//! changed, or the answer is zero.

use std::{ffi::c_int, os::fd::AsRawFd as _, time::Duration};

/// Sets how many bytes a TCP connection may receive ahead of its reader: `SO_RCVBUF`, which the kernel doubles, and the
/// largest window, which was derived from it when the connection was made (`TCP_WINDOW_CLAMP`, tcp(7)). A `window` of more
/// than `size` lets the kernel offer what its buffer really holds, which depends on the segments that arrive.
pub fn set_receive_buffer(socket: &socket2::Socket, size: usize, window: usize) {
    drop(socket.set_recv_buffer_size(size));
    let clamp = c_int::try_from(window).unwrap_or(c_int::MAX);
    // SAFETY: the value is a `c_int` that lives through the call, and its size is given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const clamp).cast(),
            libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default(),
        );
    }
}

/// Lets the kernel choose how large a receive buffer may become, whatever `SO_RCVBUF` was set before, until
/// [`set_receive_buffer`] is called again. A connection that is made meanwhile agrees on a window scale for the largest
/// window that the kernel knows, and not for the one that it begins with, which could then never be more than 64 kB
/// (`SO_BUF_LOCK`, Linux 5.14; before it that stays so).
pub fn unlock_receive_buffer(socket: &socket2::Socket) {
    set_buffer_lock(socket, 0);
}

/// Lets the kernel choose how large a send buffer may become; what is received stays as it was set.
pub fn unlock_send_buffer(socket: &socket2::Socket) {
    const RECEIVE_LOCK: c_int = 2;
    set_buffer_lock(socket, RECEIVE_LOCK);
}

fn set_buffer_lock(socket: &socket2::Socket, locks: c_int) {
    const SO_BUF_LOCK: c_int = 72;
    // SAFETY: the value is a `c_int` that lives through the call, and its size is given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BUF_LOCK,
            (&raw const locks).cast(),
            libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default(),
        );
    }
}

/// What stands in a TCP connection's send queue, with what the kernel needs to hold it (`SO_MEMINFO`, Linux 4.12); else
/// what [`unsent`] says. One system call.
pub fn queued(socket: &socket2::Socket) -> usize {
    const SO_MEMINFO: c_int = 55;
    const WMEM_QUEUED: usize = 5;
    let mut info = [0_u32; 9];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to a live array of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 && len as usize == size_of_val(&info) {
        info.get(WMEM_QUEUED).map_or(0, |bytes| *bytes as usize)
    } else {
        unsent(socket)
    }
}

/// Bytes written to a socket that the other side has not acknowledged or read (`SIOCOUTQ`, tcp(7)). Zero where the
/// connection is over, although the kernel goes on counting bytes that a reset has discarded. One system call, two where
/// the kernel reports bytes.
pub fn unsent(socket: &socket2::Socket) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one `c_int`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 || (bytes > 0 && socket.peer_addr().is_err()) {
        return 0;
    }
    usize::try_from(bytes).unwrap_or(0)
}

/// Makes the close of a connection a reset if the other side has not taken all bytes: the kernel would keep them, and the
/// socket, for minutes. Has no effect on a unix socket.
pub fn reset_unsent(socket: &socket2::Socket) {
    if unsent(socket) > 0 {
        drop(socket.set_linger(Some(Duration::ZERO)));
    }
}

/// Whether the other side has closed, even if bytes wait to be read. One system call.
pub fn has_hung_up(socket: &socket2::Socket) -> bool {
    poll_now(socket, libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// The events that poll(2) reports for a socket, without waiting.
pub fn poll_now(socket: &socket2::Socket, events: libc::c_short) -> libc::c_short {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: the pointer is to one live `pollfd`, and one is the count.
    let count = unsafe { libc::poll(&raw mut asked, 1, 0) };
    if count > 0 { asked.revents } else { 0 }
}

/// Whether the connection is closed in both directions or broken, so that its unsent bytes will never be taken. One system
/// call.
pub fn is_dead(socket: &socket2::Socket) -> bool {
    poll_now(socket, 0) & (libc::POLLHUP | libc::POLLERR) != 0
}

/// Bytes that were received and not read (`FIONREAD`). One system call.
pub fn unread(socket: &socket2::Socket) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one `c_int`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return 0;
    }
    usize::try_from(bytes).unwrap_or(0)
}

/// The process at the other side of a unix socket, as it was when the connection was made (`SO_PEERCRED`, unix(7)); 0 = it
/// is in another namespace, or there is none. One system call.
pub fn peer_process(socket: &socket2::Socket) -> libc::pid_t {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to a live `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { peer.pid } else { 0 }
}

/// The next bytes of a socket, at most so many, which stay where they are. One system call.
pub fn peek(socket: &socket2::Socket, most: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; most];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most `most` bytes to a live buffer of that size.
    let count = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), most, flags) };
    bytes.truncate(usize::try_from(count).unwrap_or(0));
    bytes
}

/// A number that changes whenever the other side takes bytes: for TCP the bytes that it has acknowledged in all
/// (`tcpi_bytes_acked`, Linux 4.1), else the unsent bytes. It wraps. One to three system calls.
pub fn taken(socket: &socket2::Socket) -> u32 {
    /// The offset of `tcpi_bytes_acked` (eight bytes) in `struct tcp_info`.
    const ACKED: usize = 120;
    let mut info = [0_u64; ACKED / 8 + 1];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to a live array of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let acked = info.last().copied().unwrap_or(0);
    #[expect(clippy::cast_possible_truncation, reason = "only its changes matter")]
    if result == 0 && len as usize == size_of_val(&info) && acked > 0 {
        acked as u32
    } else {
        unsent(socket) as u32
    }
}
