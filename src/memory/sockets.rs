//! The kernel buffers of one socket where memory is limited, and the permits that pay for them.
//!
//! A socket begins with small buffers, which the prices of its connection and its exchange include. More is paid for: a
//! wider receive buffer before its window is offered to the other side, a longer send queue before its bytes are
//! written. One socket gets a share of what is left ([`Permit::widen`]), so its buffers follow the pressure.
//!
//! The other side may fill a window at any time after it was offered, so a receive buffer never shrinks.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;

use crate::{
    memory::{
        budget::{Budget, Permit},
        prices::NARROW,
        queue::Claim,
    },
    sys::socket,
};

/// Sizes of a receive buffer (`SO_RCVBUF`, which the kernel doubles) beyond [`NARROW`], in kB. 208 is the largest where
/// `rmem_max` is the usual one before Linux 6.17, the last where it is the usual one since.
const WIDTHS: [usize; 9] = [12, 24, 64, 128, 208, 512, 1024, 2048, 4096];

/// The largest buffer of a message before as many of its bytes have passed: with more only a far sender is faster.
const NEAR: usize = 208 * 1024;

/// A receive buffer with which a message of any length is fast, and the largest segment of a sender.
const LANE: usize = 64 * 1024;

/// The receive buffer that a client's connection may have even while those of all clients hold a quarter of the budget,
/// or memory is wanted.
const LEAST: usize = 12 * 1024;

/// Bytes of a send queue that the price of an exchange includes.
const SENT: usize = 12 * 1024;

/// Bytes up to which a send queue is paid for without measuring it, which costs a system call.
const UNSEEN: usize = 256 * 1024;

/// Paid bytes of a send queue that are not given back at each pause of a message, because the queue would have to be
/// measured; unless so many would not be left for another socket.
const LITTLE: u64 = 64 * 1024;

/// `SO_SNDBUF` of a socket that is bounded by what is written to it, where the kernel cannot be left to tune it.
const WIDE: usize = 1 << 20;

/// The kernel buffers of one socket, and their permits.
pub struct KernelBuffers {
    /// `SO_RCVBUF`; 0 for a unix socket, where the sender is charged for unread bytes.
    received: usize,
    /// The largest that the system gives, where that was found out.
    most: usize,
    /// Most bytes that are in the send queue.
    sent: usize,
    /// `SO_SNDBUF` bounds the queue to what is paid for.
    is_bounded: bool,
    /// It is a client's connection, which keeps its width between two requests.
    is_client: bool,
    receiving: Permit,
    sending: Permit,
    /// The message's wait for others to finish.
    turn: Option<Turn>,
    /// The message has waited once.
    has_waited: bool,
}

type Turn = Pin<Box<dyn Future<Output = ()>>>;

impl fmt::Debug for KernelBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelBuffers")
            .field("received", &self.received)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl KernelBuffers {
    /// Those of a TCP connection, whose receive buffer has [`NARROW`] bytes.
    pub fn tcp(budget: &Rc<Budget>, is_client: bool) -> KernelBuffers {
        KernelBuffers {
            received: NARROW,
            most: usize::MAX,
            sent: 0,
            is_bounded: false,
            is_client,
            receiving: budget.receiving(is_client),
            sending: budget.sending(),
            turn: None,
            has_waited: false,
        }
    }

    /// Those of a unix connection.
    pub fn unix(budget: &Rc<Budget>) -> KernelBuffers {
        KernelBuffers {
            received: 0,
            ..KernelBuffers::tcp(budget, false)
        }
    }

    /// Whether the receive buffer is wider than the price of a connection covers.
    pub fn receives_wide(&self) -> bool {
        self.receiving.bytes() > 0
    }

    /// Whether the connection should not be kept, because others wait for the memory of its receive buffer.
    pub fn is_too_wide(&self) -> bool {
        let budget = self.receiving.budget();
        let is_asked_for = !self.is_client && budget.lanes.queue.len() > 0;
        self.receives_wide() && (is_asked_for || budget.is_wanted())
    }

    /// Widens the receive buffer for a message of which `left` bytes are still to be read and `passed` were read, as far
    /// as memory allows: for the whole message, because the next one of the connection is often as long. Where the
    /// length is unknown (`None`), as many bytes are expected as have passed. Where too little memory is left, the
    /// message waits once for others to finish, and goes on with the buffer that it then gets.
    pub fn poll_expect(
        &mut self,
        context: &mut Context<'_>,
        socket: &SockRef<'_>,
        left: Option<u64>,
        passed: u64,
    ) -> Poll<()> {
        let wanted = wanted(left.unwrap_or(0).saturating_add(passed), passed);
        let is_long = left.unwrap_or(passed) > NARROW as u64 && wanted > self.received;
        if !is_long || self.received == 0 {
            return Poll::Ready(());
        }
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(context));
            self.turn = None;
        }
        self.widen(socket, wanted);
        let enough = (wanted / 2).min(LANE);
        if self.received >= enough {
            return Poll::Ready(());
        }
        self.receiving.budget().was_narrowed();
        if std::mem::replace(&mut self.has_waited, true) {
            return Poll::Ready(());
        }
        let budget = Rc::clone(self.receiving.budget());
        let price = price(if price(enough) > self.share() {
            LEAST
        } else {
            enough
        });
        let mut turn: Turn = Box::pin(async move {
            let take = || budget.may_receive(price).then_some(());
            budget.lanes.wait(Claim::plain(), take).await;
        });
        if turn.as_mut().poll(context).is_pending() {
            self.turn = Some(turn);
            return Poll::Pending;
        }
        self.widen(socket, wanted);
        Poll::Ready(())
    }

    /// The message that was read is over: the next one may wait for its turn.
    pub fn end_message(&mut self) {
        self.has_waited = false;
    }

    /// What its permit may be worth beside the bound of every socket: a quarter of what clients' connections may still
    /// have, because they keep their width while they are idle.
    fn share(&self) -> u64 {
        if self.is_client {
            self.receiving.budget().left_for_resting() / 4
        } else {
            u64::MAX
        }
    }

    /// Widens the receive buffer to `wanted` bytes, or less where memory does not allow as much.
    pub fn widen(&mut self, socket: &SockRef<'_>, wanted: usize) {
        let share = self.share();
        let sizes = WIDTHS.into_iter().map(|width| width * 1024);
        let next = sizes.clone().position(|width| width >= wanted);
        for width in sizes
            .take(next.map_or(WIDTHS.len(), |next| next + 1))
            .rev()
            .take_while(|width| *width > self.received)
            .filter(|width| *width <= self.most)
        {
            let is_shared = width <= LEAST || price(width) <= share;
            if is_shared && self.receiving.widen(price(width)) {
                return self.receive(socket, width);
            }
        }
    }

    fn receive(&mut self, socket: &SockRef<'_>, width: usize) {
        socket::set_receive_buffer(socket, width, 2 * width);
        self.received = width;
        if width > NEAR {
            // the system may give less
            let given = socket.recv_buffer_size().map_or(width, |both| both / 2);
            if given < width {
                self.received = given;
                self.most = given;
                self.receiving.resize(price(given));
            }
        }
    }

    /// How many of `len` bytes may be written now: those that are paid for, and at least one. Where nothing is left,
    /// `SO_SNDBUF` was set to what is paid for, and the kernel reports when the queue has space again.
    pub fn may_send(&mut self, socket: &SockRef<'_>, len: usize) -> usize {
        if self.sent + len <= SENT && !self.is_bounded {
            return len;
        }
        if self.sent + len <= UNSEEN && self.pay(len) {
            self.let_go(socket);
            return len;
        }
        self.look(socket);
        if self.pay(len) {
            self.let_go(socket);
            return len;
        }
        let paid = self.paid();
        let least = len.min(NARROW);
        let rest = paid.saturating_sub(self.sent);
        if rest >= least && !self.is_bounded {
            return len.min(rest);
        }
        if !self.is_bounded {
            self.is_bounded = true;
            drop(socket.set_send_buffer_size(paid / 2));
        }
        least
    }

    /// `count` bytes were written.
    pub fn wrote(&mut self, count: usize) {
        // the kernel needs a sixteenth more to hold them
        self.sent += count + count / 16;
    }

    /// Whether `SO_SNDBUF` bounds the queue: then each write must be a segment of its own.
    pub fn is_bounded(&self) -> bool {
        self.is_bounded
    }

    /// Most bytes that are in the send queue; what is paid for beyond them is given back. No system call where few were
    /// sent.
    pub fn unsent(&mut self, socket: &SockRef<'_>) -> usize {
        if self.sent > NARROW || self.sending.bytes() > 0 {
            self.look(socket);
        }
        self.sent
    }

    /// Most bytes that are in the send queue, as far as is known without a system call.
    pub fn sent_at_most(&self) -> usize {
        self.sent
    }

    /// The part of them for which the price of an exchange pays, and no permit of the queue.
    pub fn sent_unpaid(&self) -> usize {
        self.sent.min(SENT)
    }

    /// In the middle of a message that waits for more bytes: gives back what is paid for bytes that were acknowledged. No
    /// system call where at most [`LITTLE`] is paid and the budget has as much for another.
    pub fn pause(&mut self, socket: &SockRef<'_>) {
        if self.sending.bytes() > LITTLE || !self.sending.budget().may_receive(LITTLE) {
            self.give_back(socket);
        }
    }

    /// Gives back what is paid for bytes that were acknowledged; returns whether some that are paid for are left. No
    /// system call where nothing is paid.
    pub fn give_back(&mut self, socket: &SockRef<'_>) -> bool {
        if self.sending.bytes() > 0 {
            self.look(socket);
        }
        self.sending.bytes() > 0
    }

    fn paid(&self) -> usize {
        SENT + usize::try_from(self.sending.bytes()).unwrap_or(usize::MAX / 2)
    }

    /// Pays for `len` bytes more.
    fn pay(&mut self, len: usize) -> bool {
        let needed = (self.sent + len).saturating_sub(SENT) as u64;
        needed <= self.sending.bytes() || self.sending.widen(needed)
    }

    /// Measures the send queue, and gives back what is paid for beyond it.
    fn look(&mut self, socket: &SockRef<'_>) {
        self.sent = if self.received == 0 {
            socket::unsent(socket)
        } else {
            socket::queued(socket)
        };
        let needed = self.sent.saturating_sub(SENT) as u64;
        if needed < self.sending.bytes() {
            self.sending.resize(needed);
        }
    }

    /// Removes the bound of `SO_SNDBUF`.
    fn let_go(&mut self, socket: &SockRef<'_>) {
        if std::mem::take(&mut self.is_bounded) {
            drop(socket.set_send_buffer_size(WIDE));
            if self.received > 0 {
                socket::unlock_send_buffer(socket);
            }
        }
    }
}

/// The receive buffer that a message of `whole` bytes needs of which `passed` have passed. Linux sends no segment larger
/// than half of the window, so a buffer of twice a message's size lets all of it arrive at once; a longer message comes
/// in segments of 64 kB.
pub fn wanted(whole: u64, passed: u64) -> usize {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let whole = size(whole);
    whole.max(2 * whole.min(LANE)).min(NEAR.max(size(passed)))
}

/// The price of a receive buffer of `width` bytes beyond that of a narrow one: the kernel doubles both.
fn price(width: usize) -> u64 {
    2 * width.saturating_sub(NARROW) as u64
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use tokio::runtime::{Builder, LocalOptions};

    use super::*;
    use crate::memory::plan::Plan;

    struct Pair {
        ours: TcpStream,
        theirs: TcpStream,
        budget: Rc<Budget>,
        buffers: KernelBuffers,
    }

    fn pair(limit: u64, is_client: bool) -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket::set_receive_buffer(&SockRef::from(&ours), NARROW, NARROW);
        let budget = Budget::new(Plan::new(Some(limit), 1, None));
        let buffers = KernelBuffers::tcp(&budget, is_client);
        Pair {
            ours,
            theirs,
            budget,
            buffers,
        }
    }

    impl Pair {
        fn received(&self) -> usize {
            SockRef::from(&self.ours).recv_buffer_size().unwrap() / 2
        }

        fn expect(&mut self, left: Option<u64>, passed: u64) {
            let mut context = Context::from_waker(std::task::Waker::noop());
            self.buffers.has_waited = true;
            let socket = SockRef::from(&self.ours);
            let polled = self
                .buffers
                .poll_expect(&mut context, &socket, left, passed);
            assert!(polled.is_ready());
        }

        /// Writes as much as is paid for, or until the other side has to read; says how much.
        fn send(&mut self, len: usize) -> usize {
            let bytes = vec![b'x'; len];
            let mut sent = 0;
            while sent < len {
                let may = self
                    .buffers
                    .may_send(&SockRef::from(&self.ours), len - sent);
                match self.ours.write(&bytes[sent..sent + may]) {
                    Ok(count) => {
                        self.buffers.wrote(count);
                        sent += count;
                    }
                    Err(_) => break,
                }
            }
            sent
        }
    }

    #[test]
    fn a_receive_buffer_is_as_wide_as_the_message_and_paid_for() {
        let mut pair = pair(10 << 20, true);
        pair.expect(Some(4_000), 0);
        assert_eq!((pair.received(), pair.budget.spent()), (NARROW, 0));
        for (left, width) in [(6_000, 12), (12_000, 24), (30_000, 64), (1 << 20, 208)] {
            pair.expect(Some(left), 0);
            assert_eq!(pair.received(), width * 1024, "{left}");
            assert_eq!(pair.budget.spent(), 2 * (width as u64 - 4) * 1024);
        }
        pair.expect(Some(10), 1 << 20);
        assert_eq!(pair.received(), 208 * 1024, "it never gets narrower");
        drop(pair.buffers);
        assert_eq!(pair.budget.spent(), 0);
    }

    #[test]
    fn a_wide_upstream_connection_is_not_kept_while_a_message_waits_for_width() {
        for (is_client, is_too_wide) in [(true, false), (false, true)] {
            let mut pair = pair(10 << 20, is_client);
            let budget = Rc::clone(&pair.budget);
            let mut waits = Box::pin(budget.lanes.queue.until(Claim::plain(), || None::<()>));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            assert!(!pair.buffers.is_too_wide(), "it is narrow");
            pair.expect(Some(30_000), 0);
            assert_eq!(pair.buffers.is_too_wide(), is_too_wide);
            drop(waits);
            assert!(!pair.buffers.is_too_wide(), "nothing waits");
        }
    }

    #[test]
    fn a_message_without_a_length_gets_as_much_as_it_has_had() {
        let mut pair = pair(10 << 20, true);
        for (passed, width) in [(0, 4), (4_000, 4), (5_000, 12), (40_000, 128)] {
            pair.expect(None, passed);
            assert_eq!(pair.received(), width * 1024, "{passed}");
        }
    }

    #[test]
    fn a_long_message_gets_more_when_as_much_has_passed_and_the_system_gives_it() {
        let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let most: usize = most.trim().parse().unwrap();
        let mut pair = pair(64 << 20, true);
        for (passed, width) in [(100_000, 208), (400_000, 512), (1_000_000, 1024)] {
            pair.expect(Some(10 << 20), passed);
            assert_eq!(pair.received(), most.min(width * 1024), "{passed}");
            assert_eq!(pair.budget.spent(), price(pair.received()));
        }
    }

    #[test]
    fn a_message_is_expected_to_be_followed_by_one_of_its_size() {
        let mut pair = pair(10 << 20, true);
        pair.expect(Some(4_240), 6_000);
        assert_eq!(pair.received(), 24 * 1024, "twice the whole message");
    }

    #[test]
    fn nothing_is_offered_that_is_not_paid_for() {
        let mut pair = pair(10 << 20, true);
        let pool = pair.budget.plan().pool.unwrap();
        let most = pair.budget.take(pool / 4 * 3 - 60_000);
        pair.expect(Some(1 << 20), 0);
        assert_eq!(
            pair.received(),
            NARROW,
            "a quarter of the rest is too little"
        );
        drop(most);
        pair.budget.fill(true);
        pair.expect(Some(1 << 20), 0);
        assert_eq!(pair.received(), NARROW, "three quarters are in use");
        pair.budget.fill(false);
        pair.expect(Some(1 << 20), 0);
        assert!(pair.received() > NARROW);
    }

    #[test]
    fn a_client_gets_little_where_others_rest_wide() {
        let mut pair = pair(10 << 20, true);
        let mut others = pair.budget.receiving(true);
        others.resize(pair.budget.plan().pool.unwrap() / 4 + 1);
        pair.expect(Some(1 << 20), 0);
        assert_eq!(pair.received(), LEAST);
        drop(others);
        pair.expect(Some(1 << 20), 0);
        assert_eq!(pair.received(), 208 * 1024);
    }

    #[test]
    fn messages_arrive_whole_however_wide_the_buffer_is_meanwhile() {
        let mut pair = pair(10 << 20, true);
        let mut reader = pair.ours.try_clone().unwrap();
        reader.set_nonblocking(false).unwrap();
        let lengths = [100, 20_000, 300, 100_000, 5_000, 1 << 20, 10, 70_000];
        let mut theirs = pair.theirs.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for len in lengths.iter().cycle().take(40) {
                theirs.write_all(&vec![b'x'; *len]).unwrap();
                theirs.read_exact(&mut [0]).unwrap();
            }
        });
        let mut buffer = vec![0; 64 * 1024];
        for len in lengths.iter().cycle().take(40) {
            let mut left = *len;
            while left > 0 {
                pair.expect(Some(left as u64), (len - left) as u64);
                left -= reader.read(&mut buffer).unwrap();
            }
            reader.write_all(b"x").unwrap();
        }
        sender.join().unwrap();
    }

    #[test]
    fn what_is_written_and_not_taken_is_paid_for() {
        let mut pair = pair(10 << 20, false);
        assert_eq!(pair.send(10_000), 10_000);
        assert_eq!(pair.budget.spent(), 0, "it is in the price of an exchange");
        let mut sent = 10_000;
        for _ in 0..1_000 {
            sent += pair.send(64 * 1024);
            let queued = socket::queued(&SockRef::from(&pair.ours)) as u64;
            // the last segment is filled, because these writes have no MSG_EOR
            let slack = (SENT + LANE + 8192) as u64;
            assert!(queued <= pair.budget.spent() + slack, "{queued} {sent}");
        }
        let pool = pair.budget.plan().pool.unwrap();
        assert!(pair.budget.spent() < pool / 4, "{}", pair.budget.spent());
        // the client reads on: all of it comes, and the memory is given back
        let mut theirs = pair.theirs.try_clone().unwrap();
        let mut rest = vec![0; sent];
        theirs.read_exact(&mut rest).unwrap();
        let since = std::time::Instant::now();
        while pair.buffers.unsent(&SockRef::from(&pair.ours)) > 0 {
            assert!(since.elapsed().as_secs() < 20);
            std::thread::yield_now();
        }
        assert_eq!(pair.budget.spent(), 0);
        assert_eq!(pair.send(50_000), 50_000, "as before");
    }

    #[test]
    fn at_a_pause_the_queue_is_measured_where_much_is_paid_or_little_is_left() {
        let mut pair = pair(10 << 20, false);
        let mut theirs = pair.theirs.try_clone().unwrap();
        let mut exchange = |pair: &mut Pair, len| {
            assert_eq!(pair.send(len), len);
            theirs.read_exact(&mut vec![0; len]).unwrap();
            let since = std::time::Instant::now();
            while socket::queued(&SockRef::from(&pair.ours)) > 0 {
                assert!(since.elapsed().as_secs() < 20);
                std::thread::yield_now();
            }
            pair.buffers.pause(&SockRef::from(&pair.ours));
            pair.buffers.sending.bytes()
        };
        assert!(exchange(&mut pair, 20_000) > 0, "little");
        let pool = pair.budget.plan().pool.unwrap();
        let much = pair.budget.force(pool / 16 * 11);
        assert_eq!(exchange(&mut pair, 20_000), 0, "little is left");
        drop(much);
        assert_eq!(exchange(&mut pair, 100_000), 0, "much");
    }

    #[test]
    fn where_nothing_is_left_the_kernel_takes_little() {
        let mut pair = pair(10 << 20, false);
        let all = pair.budget.force(pair.budget.plan().pool.unwrap());
        for _ in 0..1_000 {
            pair.send(64 * 1024);
        }
        let queued = socket::queued(&SockRef::from(&pair.ours));
        assert!(queued < 96 * 1024, "{queued} bytes of 64 MB");
        drop(all);
    }

    #[test]
    fn a_message_waits_for_a_wide_buffer_once() {
        let mut pair = pair(10 << 20, false);
        let pool = pair.budget.plan().pool.unwrap();
        let _much = pair.budget.force(pool / 4 * 3);
        let busy: Vec<_> = (0..64).map(|_| pair.budget.exchange(300, 0)).collect();
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build_local(LocalOptions::default())
            .unwrap();
        assert!(!pair.budget.is_crowded());
        runtime.block_on(async {
            let mut context = Context::from_waker(std::task::Waker::noop());
            for _ in 0..2 {
                let socket = SockRef::from(&pair.ours);
                let buffers = &mut pair.buffers;
                let polled = buffers.poll_expect(&mut context, &socket, Some(1 << 20), 0);
                assert!(polled.is_pending());
                assert!(pair.budget.is_crowded(), "it got none");
                // the wait is over
                buffers.turn = None;
                let polled = buffers.poll_expect(&mut context, &socket, Some(1 << 20), 0);
                assert!(polled.is_ready());
                buffers.end_message();
            }
        });
        drop(busy);
    }

    #[test]
    fn a_wide_buffer_is_too_wide_where_memory_is_wanted() {
        let mut pair = pair(10 << 20, true);
        assert!(!pair.buffers.is_too_wide());
        pair.expect(Some(30_000), 0);
        assert!(pair.buffers.receives_wide() && !pair.buffers.is_too_wide());
        pair.budget.press(true);
        assert!(pair.buffers.is_too_wide());
    }
}
