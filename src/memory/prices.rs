//! What each thing that a client or an upstream can make the process hold costs, in bytes.
//!
//! The prices were measured, and include the kernel's part (socket, buffers, epoll entry), because the cgroup counts it too.

/// The price of an idle client connection: 0.6 kB in the process, 3.8 kB in the kernel.
pub const CONNECTION: u64 = 4_400;

/// The price of a request in progress: its state and one small buffer (9 kB), the upstream's socket, and the usual content
/// of the queues of both sockets.
pub const EXCHANGE: u64 = 42_000;

/// `SO_SNDBUF` and `SO_RCVBUF` where memory is tight; the kernel doubles it. It is small because bytes that a client sends
/// before its exchange, or does not read, have no permit, and all clients may do this at the same time.
pub const NARROW: usize = 4 * 1024;

/// Limit from which on the kernel tunes socket buffers.
pub const AMPLE: u64 = 512 << 20;

/// Limit below which TLS records and HTTP/2 windows are small.
pub const SMALL: u64 = 64 << 20;

/// Bytes that exchanges, heads and waiting requests must leave free, so that new connections can always be accepted.
pub const ACCEPT_RESERVE: u64 = 32 * CONNECTION;

/// Bytes of a head, of a request or a response, that the price of an exchange includes.
pub const LARGE_HEAD: usize = 4 * 1024;

/// Capacities of buffers for larger heads. They are few because the allocator keeps pages for each size that was used: heads
/// of every length between 4 and 96 kB would keep pages of ten sizes.
pub const STEPS: [usize; 5] = [16 * 1024, 32 * 1024, 64 * 1024, 96 * 1024, 128 * 1024];

/// `SO_SNDBUF` of the log where it is a socket and memory is tight: some hundred lines that the journal has not read. The
/// kernel doubles it.
pub const LOG_QUEUE: usize = 64 * 1024;

/// Bytes of the largest response head: `MAX_HEAD` in `http1/response_head.rs`, which is above this module.
pub const LARGEST_HEAD: usize = 96 * 1024;

/// The price of up to [`NARROW`] bytes that were sent to a client and not acknowledged: the kernel keeps them in buffers of
/// up to twice their size, and keeps the socket of a closed connection until then.
pub const UNSENT: u64 = 12_000;

/// The price of what a client sends into the socket of a connection that is only read to be discarded: a narrow buffer, which
/// the kernel doubles, and one packet more.
pub const INPUT: u64 = 12_000;

/// `TCP_NOTSENT_LOWAT`: bytes that may wait in the kernel without having been sent.
pub const UNSENT_IN_KERNEL: u32 = 128 * 1024;

/// The price of a TLS handshake besides its session: a certificate message of 64 kB in records, and once more when it is
/// parsed.
pub const HANDSHAKE: u64 = 160_000;

/// What a TLS session adds to a client's connection at rest: 4.4 kB were measured. The certificate of a client, where it is
/// asked for one, is not in it.
pub const TLS_CLIENT: u64 = 4_500;

/// What a handshake with a client may hold: 18 kB of what the client sends, once as it comes; what it is answered; and the
/// keys as they are agreed on. 11 to 13 kB were measured with usual clients.
pub const CLIENT_HANDSHAKE: u64 = 34_000;

/// What TLS adds to an exchange: a record for the client where memory is small and where it is not.
pub const RECORD_OUT: (u64, u64) = (5_000, 17_000);

/// The same for a request with a body: a record of the client, encrypted as it comes and decrypted as it is read.
pub const RECORD_IN: u64 = 20_000;

/// What a unix socket costs that is over but not read: itself and its queue's own.
pub const UNREAD: u64 = 2_000;

/// Bounds the requests that may wait for memory although there is none for waiting: 200 kB below a limit of 512 MiB.
pub const SPARED: usize = 16;

/// The price of an idle upstream connection.
pub const IDLE_UPSTREAM: u64 = 4_400;

/// The price of a TLS session of an upstream connection: 24 kB were measured, idle and busy.
pub const TLS_SESSION: u64 = 24_000;

/// What a hostile HTTP/2 connection can make the process hold beside its streams, which pay for themselves, where memory is
/// small; and where it is not: the sum of the bounds in docs/memory.md.
pub const HTTP2_CONNECTION: u64 = 1_200_000;
pub const HTTP2_CONNECTION_WIDE: u64 = 3_400_000;

/// What a hostile upstream can make the process hold on an HTTP/2 connection beside its streams, which pay for themselves,
/// where memory is small, and where it is not: the sum of the bounds in docs/memory.md.
pub const HTTP2_UPSTREAM: u64 = 1_540_000;
pub const HTTP2_UPSTREAM_WIDE: u64 = 4_330_000;

/// What the program needs for itself: the code that serves requests (1.5 MB of page cache, or it is read again and
/// again), the allocator, the runtime.
pub const BASE: u64 = 2_000_000;

/// Moves a head into a buffer of the size of [`step`], because it may have grown to a larger one.
pub fn in_step(head: Vec<u8>) -> Vec<u8> {
    if head.capacity() <= LARGE_HEAD {
        return head;
    }
    let mut text = Vec::with_capacity(step(head.len()));
    text.extend_from_slice(&head);
    text
}

/// The price of a response head of `bytes` bytes: its buffer, and a quarter more, which the allocator leaves between such
/// buffers.
pub fn head_price(bytes: usize) -> u64 {
    if bytes <= LARGE_HEAD {
        return 0;
    }
    let capacity = step(bytes) as u64;
    capacity + capacity / 4
}

/// The capacity of a buffer for a head of `bytes` bytes: exact where it is small.
pub fn step(bytes: usize) -> usize {
    if bytes <= LARGE_HEAD {
        return bytes;
    }
    STEPS
        .into_iter()
        .find(|step| *step >= bytes)
        .unwrap_or(bytes)
}
