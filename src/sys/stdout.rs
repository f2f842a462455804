//! Writes whole lines to standard output or standard error, without waiting for a reader of a pipe, socket or terminal.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
};

/// The kind of a descriptor, which decides how to write without blocking.
#[derive(Debug)]
pub enum Output {
    /// A pipe: polled for space, then written.
    Pipe,
    /// A socket, such as the journal's: written with `MSG_DONTWAIT`.
    Socket,
    /// A terminal, which may be stopped: opened again for this process, so that `O_NONBLOCK` does not affect other
    /// processes.
    Terminal(Terminal),
    /// A file or `/dev/null`: written, and may block for as long as the file system does.
    Other,
}

/// A terminal that is written to without waiting.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    /// The rest of a line that the terminal took in part; it is written first, so that lines stay whole.
    rest: RefCell<Vec<u8>>,
}

impl Terminal {
    /// Opens the terminal of `fd` again; `None` where that is not allowed.
    fn open(fd: RawFd) -> Option<Terminal> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{fd}"))
            .ok()?;
        Some(Terminal {
            file,
            rest: RefCell::default(),
        })
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut rest = self.rest.borrow_mut();
        while !rest.is_empty() {
            let count = (&self.file).write(&rest)?;
            rest.drain(..count);
        }
        let count = (&self.file).write(line)?;
        rest.extend_from_slice(line.get(count..).unwrap_or_default());
        Ok(())
    }
}

impl Output {
    /// What `descriptor` is.
    pub fn of(descriptor: &impl AsRawFd) -> Output {
        // SAFETY: a zeroed stat is valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live stat.
        let known = unsafe { libc::fstat(descriptor.as_raw_fd(), &raw mut stat) } == 0;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFIFO if known => Output::Pipe,
            libc::S_IFSOCK if known => Output::Socket,
            libc::S_IFCHR if known && is_terminal(descriptor.as_raw_fd()) => {
                Terminal::open(descriptor.as_raw_fd()).map_or(Output::Other, Output::Terminal)
            }
            _ => Output::Other,
        }
    }

    /// Bounds the unread bytes of a socket: systemd gives the journal's 8 MB, which count against the process's cgroup.
    pub fn bound(&self, descriptor: &impl AsFd, bytes: usize) {
        if matches!(self, Output::Socket) {
            drop(socket2::SockRef::from(descriptor).set_send_buffer_size(bytes));
        }
    }

    /// Writes all of `line` (at most 4096 bytes = `PIPE_BUF`), or nothing and returns an error. Pipes, sockets and terminals
    /// never block, if only one thread of this process writes at a time.
    pub fn write(&self, descriptor: &impl AsRawFd, line: &[u8]) -> io::Result<()> {
        let fd = descriptor.as_raw_fd();
        let (start, length) = (line.as_ptr().cast(), line.len());
        if matches!(self, Output::Pipe) && !has_room(fd) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = match self {
            // SAFETY: start and length are those of a live slice.
            Output::Socket => unsafe {
                libc::send(fd, start, length, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            },
            // SAFETY: as above.
            Output::Pipe | Output::Other => unsafe { libc::write(fd, start, length) },
            Output::Terminal(terminal) => return terminal.write(line),
        };
        match usize::try_from(written) {
            Ok(written) if written == length => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

pub fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: isatty takes a number and touches no memory.
    unsafe { libc::isatty(fd) == 1 }
}

/// Whether a pipe takes a line: POLLOUT means a free page, which is enough for `PIPE_BUF` bytes.
pub fn has_room(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the pointer is to one live pollfd, and one is the count.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}
