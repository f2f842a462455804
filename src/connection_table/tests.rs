//! A slot and the timer agree, whatever the clock says: the tests set it.

use std::{
    future::{Future, pending, ready},
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    eviction::{BLOCKED, Scope},
    phase::Phase,
    slot::Elapsed,
    slot_state::{LOOKS, flag},
    *,
};
use crate::{
    client_group::Group, memory::queue::Claim, outcome::Outcome, yield_budget::tests::Count,
};

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

fn table() -> Rc<ConnectionTable> {
    ConnectionTable::new(Rc::default())
}

/// From now on it is so many milliseconds after the start.
fn set_clock(table: &ConnectionTable, millis: u32) {
    table.ticking.set(true);
    table.now.set(millis);
}

/// Counts how often the timer is woken.
fn watch(table: &ConnectionTable) -> Arc<Count> {
    let count = Arc::new(Count::default());
    *table.sweep.borrow_mut() = Some(Waker::from(Arc::clone(&count)));
    count
}

fn has(table: &ConnectionTable, index: usize, flag: u8) -> bool {
    table.entries.borrow()[index].has(flag)
}

/// The timer gives this slot a look at its sockets.
fn give_look(table: &ConnectionTable, index: usize) {
    let now = table.now.get();
    table.entries.borrow()[index].look_back(now, true);
}

fn client(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

#[test]
fn a_phase_begins_without_what_the_last_one_left() {
    let table = table();
    set_clock(&table, 100);
    let slot = table.slot(None);
    slot.enter(Phase::Busy, SECOND);
    slot.has_place();
    slot.asks(7);
    slot.moved(500);
    set_clock(&table, 900);
    slot.enter_on_time(Phase::Busy);
    let entries = table.entries.borrow();
    let entry = &entries[0];
    assert!(!entry.holds(Scope::ConcurrencyLimit) && !entry.holds(Scope::Host(7)));
    let marks = [
        &entry.since,
        &entry.moved_at,
        &entry.mark,
        &entry.older_mark,
    ];
    assert_eq!(marks.map(std::cell::Cell::get), [900; 4]);
    assert_eq!(entry.bytes.get(), 0);
}

#[test]
fn a_freed_slot_holds_nothing_and_lets_the_next_connection_in() {
    let table = table();
    let slot = table.slot(None);
    slot.enter(Phase::Busy, SECOND);
    slot.asks(7);
    slot.has_place();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut next = pin!(
        table
            .room
            .until(Claim::plain(), || { (table.open() == 0).then_some(()) })
    );
    let mut context = Context::from_waker(&waker);
    assert!(next.as_mut().poll(&mut context).is_pending());
    let timer = watch(&table);
    drop(slot);
    assert_eq!((count.take(), timer.take()), (1, 1));
    assert!(next.as_mut().poll(&mut context).is_ready());
    assert_eq!(table.look(), None, "its deadline is gone");
    let holds = |scope| table.entries.borrow()[0].holds(scope);
    assert!(!holds(Scope::Host(7)) && !holds(Scope::ConcurrencyLimit));
}

#[test]
fn streams_are_not_counted_as_connections() {
    let table = table();
    let connection = table.slot(None);
    let streams = [(); 3].map(|()| table.stream(None));
    assert_eq!(table.open(), 1);
    drop(streams);
    assert_eq!(table.open(), 1);
    drop(connection);
    assert_eq!(table.open(), 0);
}

#[test]
fn a_deadline_starts_anew_with_progress_alone() {
    let table = table();
    set_clock(&table, 0);
    let (slot, mut seen) = (table.slot(None), None);
    assert!(!slot.is_late(&mut seen, 1, SECOND));
    set_clock(&table, 1_500);
    assert!(slot.is_late(&mut seen, 1, SECOND));
    assert!(!slot.is_late(&mut seen, 2, SECOND));
}

#[test]
fn a_time_out_of_a_kernel_that_takes_bytes_starts_anew() {
    for moves in [false, true] {
        let table = table();
        set_clock(&table, 0);
        let slot = table.slot(None);
        let is_stalled = |sign| slot.is_stalled(TimerKind::Client, SECOND, || sign);
        assert!(!is_stalled(5));
        assert!(has(&table, 0, flag::CLIENT_BLOCKS));
        set_clock(&table, 700);
        give_look(&table, 0);
        assert!(slot.is_to_look());
        assert!(!is_stalled(5), "the first sign that is known");
        slot.has_looked();
        set_clock(&table, 1_500);
        assert_eq!(is_stalled(if moves { 6 } else { 5 }), !moves);
        let moved_at = table.entries.borrow()[0].moved_at.get();
        assert_eq!(moved_at, if moves { 1_500 } else { 0 });
    }
}

#[test]
fn a_time_out_ends_at_its_first_check_where_nothing_is_known() {
    let table = table();
    set_clock(&table, 0);
    let slot = table.slot(None);
    assert!(!slot.is_stalled(TimerKind::Work, SECOND, || 5));
    set_clock(&table, 1_500);
    assert!(slot.is_stalled(TimerKind::Work, SECOND, || 5));
}

#[test]
fn bytes_that_the_client_takes_end_its_time_out() {
    let table = table();
    set_clock(&table, 0);
    let slot = table.slot(None);
    assert!(!slot.is_stalled(TimerKind::Client, SECOND, || 5));
    set_clock(&table, 900);
    slot.took(1);
    assert!(!has(&table, 0, flag::CLIENT_BLOCKS));
    set_clock(&table, 1_500);
    assert!(!slot.is_write_overdue());
    assert!(!slot.is_stalled(TimerKind::Client, SECOND, || 5));
}

#[test]
fn a_wait_ends_with_its_work_its_time_or_an_order_and_leaves_no_deadline() {
    let table = table();
    set_clock(&table, 0);
    let slot = table.slot(None);
    let mut context = Context::from_waker(Waker::noop());
    let nothing = slot.within_rest(Some(Duration::ZERO), SECOND, pending::<()>());
    assert_eq!(pin!(nothing).poll(&mut context), Poll::Ready(Err(Elapsed)));
    let done = slot.within_rest(Some(Duration::ZERO), SECOND, ready(3));
    assert_eq!(pin!(done).poll(&mut context), Poll::Ready(Ok(3)));
    {
        let mut late = pin!(slot.within(SECOND, pending::<()>()));
        assert!(late.as_mut().poll(&mut context).is_pending());
        set_clock(&table, 1_500);
        assert_eq!(late.poll(&mut context), Poll::Ready(Err(Elapsed)));
        assert!(!slot.is_overdue());
    }
    let mut told = pin!(slot.within(None, pending::<()>()));
    assert!(told.as_mut().poll(&mut context).is_pending());
    slot.evict();
    assert_eq!(told.poll(&mut context), Poll::Ready(Err(Elapsed)));
}

#[test]
fn a_deadline_is_never_early_however_old_the_clock_is() {
    let table = table();
    set_clock(&table, 1_000);
    let tick = u32::try_from(table.tick.get().as_millis()).unwrap();
    assert!(table.due(Duration::from_secs(1)) > 2_000 + tick);
}

#[test]
fn the_timer_ticks_as_fast_as_the_shortest_time_out_needs() {
    let table = table();
    let (slot, usual) = (table.slot(None), table.tick.get());
    let short = Some(Duration::from_millis(200));
    slot.enter(Phase::Busy, Some(Duration::ZERO));
    slot.enter(Phase::Busy, SECOND.map(|second| 60 * second));
    assert_eq!(table.tick.get(), usual);
    let start: [&dyn Fn(); 2] = [&|| slot.enter(Phase::Busy, short), &|| {
        let _ = slot.is_stalled(TimerKind::Client, short, || 0);
    }];
    for start in start {
        set_clock(&table, 0);
        let timer = watch(&table);
        start();
        assert_eq!(table.tick.get(), Duration::from_millis(20));
        assert!(timer.take() > 0, "it may be in a longer sleep");
        table.reset_pace();
        assert_eq!(table.tick.get(), usual);
    }
}

#[test]
fn the_timer_is_woken_for_a_deadline_that_comes_before_its_next() {
    let table = table();
    let slot = table.slot(None);
    let timer = watch(&table);
    slot.enter(Phase::Idle, Some(Duration::from_mins(1)));
    assert_eq!(timer.take(), 1, "it sleeps without an end");
    let pause = table.look().unwrap();
    assert!((58..=61).contains(&pause.as_secs()), "{pause:?}");
    slot.enter(Phase::Idle, Some(Duration::from_secs(90)));
    assert_eq!(timer.take(), 0, "it wakes before that");
    slot.enter(Phase::Idle, Some(Duration::from_secs(30)));
    assert_eq!(timer.take(), 1);
}

#[test]
fn the_timer_rests_while_all_connections_do() {
    let table = table();
    let slot = table.slot(None);
    assert_eq!(table.look(), None);
    slot.enter(Phase::Idle, None);
    assert_eq!(table.look(), None);
    slot.enter(Phase::Busy, None);
    assert_eq!(table.look(), Some(table.tick.get()));
}

#[test]
fn a_rate_is_known_after_some_seconds_and_counts_what_moves() {
    let mut table = table();
    let minute = Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
    Rc::get_mut(&mut table).unwrap().origin = minute;
    set_clock(&table, 55_000);
    let slot = table.slot(None);
    slot.enter(Phase::Busy, None);
    slot.uploads(true);
    slot.moved(50_000);
    let holder = |now| table.entries.borrow()[0].holder(now);
    assert_eq!(holder(59_000).rate, None);
    assert!(holder(59_000).moves);
    table.look();
    let marked = table.entries.borrow()[0].mark.get();
    assert_eq!(marked, table.now.get());
    slot.moved(10_000);
    assert_eq!(holder(65_000).rate, Some(6_000));
}

#[test]
fn a_task_looks_at_every_tick_for_a_second_and_then_at_its_turn() {
    let table = table();
    set_clock(&table, 0);
    let slot = table.slot(None);
    let looks = |now, is_its_turn| {
        slot.has_looked();
        table.entries.borrow()[0].look_back(now, is_its_turn);
        slot.is_to_look()
    };
    assert!(!looks(10, true), "it did not ask");
    slot.look_back(true);
    assert!(looks(10, false) && !looks(LOOKS, false) && looks(LOOKS, true));
}

#[test]
fn a_share_counts_connections_that_hold_it_and_were_not_told_to_leave() {
    let table = table();
    let slots = [1, 1, 1, 2].map(|last| table.slot(Some(client(last))));
    let most = |scope| {
        let above = table.above_equal_share(scope, std::iter::empty());
        above.first().map(|surplus| surplus.group)
    };
    for slot in &slots {
        slot.enter(Phase::Idle, None);
    }
    assert_eq!(most(Scope::Memory), None, "they rest");
    for slot in &slots {
        slot.enter(Phase::Busy, None);
    }
    assert_eq!(most(Scope::Memory), Some(Group::of(Some(client(1)))));
    assert_eq!(most(Scope::ConcurrencyLimit), None, "none has a place");
    slots[0].evict();
    assert_eq!(most(Scope::Memory), None);
}

#[test]
fn of_requests_that_wait_the_oldest_leave() {
    let table = table();
    let slots: Vec<Slot> = [(1, 0), (2, 200), (1, 100)]
        .map(|(last, since)| {
            set_clock(&table, since);
            let slot = table.slot(Some(client(last)));
            slot.enter(Phase::Waiting, None);
            slot
        })
        .into();
    let told = || -> Vec<bool> {
        let is_told = |slot: &Slot| slot.order() == Directive::Leave;
        slots.iter().map(is_told).collect()
    };
    set_clock(&table, 300);
    assert_eq!(table.evict_waiting(1, None), 1);
    assert_eq!(told(), [true, false, false]);
    let second = Some(Group::of(Some(client(2))));
    assert_eq!(table.evict_waiting(9, second), 1, "of that group alone");
    assert_eq!(told(), [true, true, false]);
    assert_eq!(table.evict_waiting(9, None), 1);
}

#[test]
fn of_heads_that_are_not_taken_the_stillest_leave_after_a_moment() {
    let table = table();
    let slots = [0, 100].map(|since| {
        set_clock(&table, since);
        let slot = table.slot(None);
        slot.enter(Phase::Busy, None);
        slot.holds_head(true);
        slot
    });
    set_clock(&table, BLOCKED - 1);
    assert_eq!(table.evict_heads(9), 0);
    set_clock(&table, 10 * BLOCKED);
    assert_eq!(table.evict_heads(1), 1);
    assert_eq!(
        slots.map(|slot| slot.order()),
        [Directive::Leave, Directive::None]
    );
}

#[test]
fn resting_connections_leave_whose_answers_are_not_taken() {
    let table = table();
    set_clock(&table, 0);
    let slots = [true, false].map(|owes| {
        let slot = table.slot(None);
        slot.enter(Phase::Idle, None);
        slot.look_back(owes);
        slot
    });
    assert_eq!(table.evict_unsent(9), 0);
    set_clock(&table, BLOCKED);
    assert_eq!(table.evict_unsent(9), 1);
    assert_eq!(slots[0].order(), Directive::Leave);
}

#[test]
fn at_a_stop_new_connections_get_a_moment_and_others_finish() {
    let table = table();
    set_clock(&table, 0);
    let phases = [Phase::Fresh, Phase::Handshake, Phase::Idle, Phase::Busy];
    let slots = phases.map(|phase| {
        let slot = table.slot(None);
        slot.enter(phase, None);
        slot
    });
    let orders = || slots.each_ref().map(|slot| slot.order());
    let (none, finish, leave) = (Directive::None, Directive::Finish, Directive::Leave);
    table.finish();
    assert_eq!(orders(), [none, none, none, finish]);
    set_clock(&table, 500);
    table.finish();
    assert_eq!(orders(), [none, none, finish, finish]);
    slots[3].evict();
    assert_eq!(slots[3].leave_outcome(), Outcome::Evicted);
    set_clock(&table, 1_000);
    table.finish();
    assert_eq!(orders(), [finish, finish, finish, leave]);
    table.close();
    assert_eq!(orders(), [leave; 4]);
    assert_eq!(slots[0].leave_outcome(), Outcome::Shutdown);
}
