//! A connection's own handle on its slot: it writes there what it does, and reads what the timer wants of it.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use crate::{
    client_group::Group,
    connection_table::{
        phase::Phase,
        slot_state::{Directive, SlotState, Tick, TimerKind, UNKNOWN, flag},
        table::ConnectionTable,
    },
    memory::queue::Claim,
    outcome::Outcome,
};

/// One connection's slot in the table; free again when this is dropped.
#[derive(Debug)]
pub struct Slot(SlotRef);

/// The slot of one stream of a connection; given up on drop.
#[derive(Debug)]
pub struct StreamSlot(pub(super) Slot);

/// A reference to a slot, for what works for its connection. Must not outlive the [`Slot`].
#[derive(Debug, Clone)]
pub struct SlotRef {
    table: Rc<ConnectionTable>,
    index: u32,
    /// Here and not in the table: the allocation of the connection's task has bytes to spare.
    client: Option<IpAddr>,
    /// Likewise: whether it may speak HTTP/2.
    offers_http2: bool,
}

/// A wait took longer than it may.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl ConnectionTable {
    /// A slot for a stream of a connection that has its own.
    pub fn stream(self: &Rc<ConnectionTable>, client: Option<IpAddr>) -> StreamSlot {
        self.streams.set(self.streams.get() + 1);
        StreamSlot(self.slot(client))
    }

    /// A slot for a connection that was just accepted.
    pub fn slot(self: &Rc<ConnectionTable>, client: Option<IpAddr>) -> Slot {
        let now = self.now();
        let entry = SlotState {
            waker: None,
            phase: Cell::new(Phase::Fresh),
            order: Cell::new(Directive::None),
            flags: Cell::new(0),
            host: Cell::new(0),
            group: Cell::new(Group::of(client)),
            since: Cell::new(now),
            timers: Default::default(),
            moved_at: Cell::new(now),
            bytes: Cell::new(0),
            mark: Cell::new(now),
            bytes_at_mark: Cell::new(0),
            older_mark: Cell::new(now),
            bytes_at_older: Cell::new(0),
        };
        let mut entries = self.entries.borrow_mut();
        let index = if let Some(index) = self.free.borrow_mut().pop() {
            if let Some(place) = entries.get_mut(index as usize) {
                *place = entry;
            }
            index
        } else {
            entries.push(entry);
            u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
        };
        self.open.set(self.open.get() + 1);
        Slot(SlotRef {
            table: Rc::clone(self),
            index,
            client,
            offers_http2: false,
        })
    }
}

impl Slot {
    /// The connection came to a listener that offers HTTP/2, or to one that does not.
    #[must_use]
    pub fn offering_http2(mut self, offers_http2: bool) -> Slot {
        self.0.offers_http2 = offers_http2;
        self
    }
}

impl std::ops::Deref for Slot {
    type Target = SlotRef;

    fn deref(&self) -> &SlotRef {
        &self.0
    }
}

impl std::ops::Deref for StreamSlot {
    type Target = SlotRef;

    fn deref(&self) -> &SlotRef {
        &self.0
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let streams = &self.0.table.streams;
        streams.set(streams.get() - 1);
    }
}

impl SlotRef {
    fn with<T>(&self, look: impl FnOnce(&SlotState) -> T) -> T {
        let entries = self.table.entries.borrow();
        look(
            entries
                .get(self.index as usize)
                .expect("a slot is in the table until it is dropped"),
        )
    }

    /// Registers the connection's task, which the timer wakes.
    pub fn settle(&self, waker: &Waker) {
        if let Some(entry) = self.table.entries.borrow_mut().get_mut(self.index as usize) {
            entry.waker = Some(waker.clone());
        }
    }

    /// The table's coarse time, in milliseconds.
    pub fn now(&self) -> u32 {
        self.table.now()
    }

    /// Whether the listener that the connection came to offers HTTP/2.
    pub fn offers_http2(&self) -> bool {
        self.offers_http2
    }

    /// The client's address; `None` on a unix socket.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Goes over to another phase, which may last for `limit`.
    pub fn enter(&self, phase: Phase, limit: Option<Duration>) {
        let due = limit.map(|limit| {
            self.table.keep_pace(limit);
            self.table.due(limit)
        });
        self.with(|entry| {
            entry.begin(phase, self.table.now());
            entry.timer(TimerKind::Work).set(due);
        });
        self.rouse_for(phase, due);
    }

    /// Goes over to another phase while the deadline stays what it is.
    pub fn enter_on_time(&self, phase: Phase) {
        self.with(|entry| entry.begin(phase, self.table.now()));
        self.rouse_for(phase, None);
    }

    fn rouse_for(&self, phase: Phase, due: Option<Tick>) {
        if !matches!(phase, Phase::Fresh | Phase::Idle) {
            self.table.rouse_sweep(None);
        } else if due.is_some() {
            self.table.rouse_sweep(due);
        }
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.with(|entry| entry.phase.get())
    }

    /// What the task waits for next must come within `limit`; `None` = it may take for ever.
    fn set_deadline(&self, limit: Option<Duration>) {
        self.start(limit, limit);
    }

    /// Nothing stands under a deadline any more.
    pub fn clear_deadline(&self) {
        self.set_deadline(None);
    }

    /// Whether `progress` has been the same for `limit`; `seen` is what it was at the last call, and `None` before the first.
    /// Whatever waits for more than one thing to happen has its deadline from here, so that none counts time while its
    /// progress goes on.
    pub fn is_late<P: PartialEq + Copy>(
        &self,
        seen: &mut Option<P>,
        progress: P,
        limit: Option<Duration>,
    ) -> bool {
        if seen.replace(progress) != Some(progress) {
            self.set_deadline(limit);
        }
        self.is_overdue()
    }

    /// The same for the `rest` of a time-out of `limit`.
    fn start(&self, rest: Option<Duration>, limit: Option<Duration>) {
        if let Some(limit) = limit {
            self.table.keep_pace(limit);
        }
        let due = rest.map(|rest| self.table.due(rest));
        self.with(|entry| entry.timer(TimerKind::Work).set(due));
        if due.is_some() {
            self.table.rouse_sweep(due);
        }
    }

    /// Whether the deadline has passed. The timer wakes the task when it does.
    pub fn is_overdue(&self) -> bool {
        self.with(|entry| entry.timer(TimerKind::Work).is_past(self.table.now()))
    }

    /// The other side of a socket takes no bytes at the moment; says whether it has taken none for `limit`. `sign` is a
    /// number that changes whenever it takes some ([`crate::sys::taken`]): a kernel that drains a large buffer slowly says
    /// nothing for long, and yet gets on. It is asked once a tick at most.
    pub fn is_stalled(
        &self,
        kind: TimerKind,
        limit: Option<Duration>,
        sign: impl FnOnce() -> u32,
    ) -> bool {
        let now = self.table.now();
        let (starts, is_past) = self.with(|entry| {
            let timer = entry.timer(kind);
            entry.set(flag::LOOKS_BACK, true);
            if kind == TimerKind::Client {
                entry.set(flag::CLIENT_BLOCKS, true);
            }
            if entry.has(flag::LOOK_DUE) || timer.is_past(now) {
                let (sign, before) = (sign().max(UNKNOWN + 1), timer.sign.get());
                timer.sign.set(sign);
                if before != UNKNOWN && before != sign {
                    entry.moved_at.set(now);
                    timer.runs.set(false);
                }
            }
            (!timer.runs.get(), timer.is_past(now))
        });
        if starts && let Some(limit) = limit {
            self.table.keep_pace(limit);
            let due = self.table.due(limit);
            self.with(|entry| {
                let timer = entry.timer(kind);
                timer.runs.set(true);
                timer.due.set(due);
            });
        }
        self.table.rouse_sweep(None);
        is_past
    }

    /// Whether the client has taken no byte for too long.
    pub fn is_write_overdue(&self) -> bool {
        self.with(|entry| entry.timer(TimerKind::Client).is_past(self.table.now()))
    }

    /// It takes bytes again, or nothing is to be taken.
    pub fn goes_on(&self, kind: TimerKind) {
        self.with(|entry| entry.timer(kind).set(None));
    }

    /// The client took bytes: whatever it had to take them in starts anew.
    pub fn took(&self, bytes: usize) {
        self.moved(bytes);
        self.goes_on(TimerKind::Client);
    }

    /// The client took or gave bytes.
    pub fn moved(&self, bytes: usize) {
        let now = self.table.now();
        self.with(|entry| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it wraps, which neither a rate nor a first look minds"
            )]
            entry
                .bytes
                .set(entry.bytes.get().wrapping_add(bytes as u32));
            entry.moved_at.set(now);
            entry.set(flag::CLIENT_BLOCKS, false);
        });
    }

    /// Whether the task is to be woken to look for what no event tells: at every tick at first, then once a second.
    /// Gives what it was before.
    pub fn look_back(&self, on: bool) -> bool {
        let before = self.with(|entry| {
            let before = entry.has(flag::LOOKS_BACK);
            entry.set(flag::LOOKS_BACK, on);
            before
        });
        if on && !before {
            self.table.rouse_sweep(None);
        }
        before
    }

    /// Whether it was woken for that, and has not called [`has_looked`](Self::has_looked) since.
    pub fn is_to_look(&self) -> bool {
        self.with(|entry| entry.has(flag::LOOK_DUE))
    }

    /// It has.
    pub fn has_looked(&self) {
        self.with(|entry| entry.set(flag::LOOK_DUE, false));
    }

    /// The group of clients that it counts for.
    pub fn group(&self) -> Group {
        self.with(|entry| entry.group.get())
    }

    /// Its claim in a queue, from now on; `is_whole`: the request has been received completely.
    pub fn claim(&self, is_whole: bool) -> Claim {
        Claim {
            group: self.group(),
            since: self.now(),
            is_whole,
        }
    }

    /// It counts for another group from now on: a proxy brings the requests of many clients.
    pub fn set_group(&self, group: Group) {
        self.with(|entry| entry.group.set(group));
    }

    /// Waits in line for a place or a connection, or no longer does.
    pub fn queues(&self, on: bool) {
        self.with(|entry| entry.set(flag::QUEUED, on));
    }

    /// Has one of `max_concurrent_requests` from now on.
    pub fn has_place(&self) {
        self.with(|entry| entry.set(flag::PLACE, true));
    }

    /// The exchange has a connection of this upstream from now on, or the room for one.
    pub fn asks(&self, host: u32) {
        let now = self.table.now();
        self.with(|entry| {
            entry.host.set(host);
            entry.measure_anew(now);
        });
    }

    /// The request's body is on its way to the upstream, or has arrived there.
    pub fn uploads(&self, on: bool) {
        self.with(|entry| entry.set(flag::UPLOADS, on));
    }

    /// The answer's head is there, the rest of it streams.
    pub fn streams(&self) {
        let now = self.table.now();
        self.with(|entry| {
            if !entry.has(flag::UPLOADS) {
                // what the body's rate was says nothing of the answer's
                entry.measure_anew(now);
            }
            entry.set(flag::STREAMS, true);
            entry.set(flag::CLIENT_BLOCKS, false);
        });
    }

    /// The exchange waits for bytes from the client.
    pub fn client_blocks(&self) {
        self.with(|entry| entry.set(flag::CLIENT_BLOCKS, true));
    }

    /// Whether the exchange holds memory for a large response head.
    pub fn holds_head(&self, on: bool) {
        self.with(|entry| entry.set(flag::HOLDS_HEAD, on));
    }

    /// What the timer wants.
    pub fn order(&self) -> Directive {
        self.with(|entry| entry.order.get())
    }

    /// Tells it to leave.
    pub fn evict(&self) {
        self.with(|entry| entry.tell(Directive::Leave));
    }

    /// How an exchange ends that is told to leave.
    pub fn leave_outcome(&self) -> Outcome {
        if self.table.closing.get() {
            Outcome::Shutdown
        } else {
            Outcome::Evicted
        }
    }

    /// Runs this connection's task again.
    pub fn wake(&self) {
        self.with(SlotState::wake);
    }

    /// Waits for `work`, but no longer than `limit` and not once the connection is told to leave.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over.
    pub async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        self.within_rest(limit, limit, work).await
    }

    /// The same where only the `rest` of a time-out is left.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over.
    pub async fn within_rest<T>(
        &self,
        rest: Option<Duration>,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        let mut armed = false;
        let result = poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            if rest == Some(Duration::ZERO) {
                return Poll::Ready(Err(Elapsed));
            }
            if !armed {
                armed = true;
                self.start(rest, limit);
            }
            if self.is_overdue() || self.order() == Directive::Leave {
                Poll::Ready(Err(Elapsed))
            } else {
                Poll::Pending
            }
        })
        .await;
        if armed {
            self.set_deadline(None);
        }
        result
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let SlotRef { table, index, .. } = &self.0;
        let waker = table
            .entries
            .borrow_mut()
            .get_mut(*index as usize)
            .and_then(|entry| {
                entry.phase.set(Phase::Empty);
                entry.flags.set(0);
                entry.host.set(0);
                entry.waker.take()
            });
        drop(waker);
        table.free.borrow_mut().push(*index);
        table.open.set(table.open.get() - 1);
        table.room.wake();
        if table.open.get() == 0 {
            // what the last ones held is given back: no deadline is left for which the sweep would run
            table.rouse();
        }
    }
}
