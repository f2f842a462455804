//! Permits are given out and come back as the plan says.

use super::*;
use crate::memory::buffers::{BULK, Buffer, Buffers, KEPT, ReadSize};
use crate::memory::prices::{AMPLE, BASE, CONNECTION, SMALL, STEPS, step};
use crate::{client_group::Group, memory::queue::Claim, yield_budget::tests::Count};
use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

const CLAIM: Claim = Claim {
    group: Group::UNIX,
    since: 0,
    is_whole: true,
};

#[test]
fn ten_megabytes_allow_what_is_promised() {
    let plan = Plan::new(Some(10 << 20), 1, None);
    assert!(plan.connections >= 500, "{plan:?}");
    assert!(plan.exchanges().unwrap() >= 100, "{plan:?}");
    let idle_beside_128 = (plan.pool.unwrap() - 128 * EXCHANGE) / CONNECTION;
    assert!(
        idle_beside_128 >= 500,
        "{idle_beside_128} idle connections beside 128 exchanges"
    );
}

#[test]
fn workers_share_and_small_limits_still_work() {
    for (limit, workers) in [(6 << 20, 1), (10 << 20, 4), (1 << 20, 1), (4096, 64)] {
        let plan = Plan::new(Some(limit), workers, None);
        assert!(
            plan.connections >= 8 && plan.pool.unwrap() >= EXCHANGE * 2,
            "{limit} by {workers}: {plan:?}"
        );
    }
    assert_eq!(Plan::new(None, 2, Some(3)).connections, 2);
    assert_eq!(Plan::new(Some(10 << 20), 1, Some(3)).connections, 3);
}

#[test]
fn large_heads_get_a_fifth_and_leave_the_rest() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let heads: Vec<Permit> = std::iter::from_fn(|| budget.head(60_000)).collect();
    assert!((10..40).contains(&heads.len()), "{}", heads.len());
    assert!(budget.exchange(300, 0).is_some());
    drop(heads);
    assert!(budget.head(60_000).is_some());
    assert_eq!((budget.spent(), budget.exchanges()), (0, (0, 1)));
}

#[test]
fn the_last_bytes_are_for_new_connections() {
    for missing in [0, 1] {
        let budget = Budget::new(Plan {
            pool: Some(4 * EXCHANGE + ACCEPT_RESERVE - missing),
            ..Plan::new(None, 1, None)
        });
        let mut admitted = Vec::new();
        while let Some(permit) = budget.exchange(300, 0) {
            admitted.push(permit);
        }
        assert_eq!(admitted.len() as u64, 4 - missing);
        let head = budget.head(EXCHANGE);
        assert!(head.is_none(), "nor are they for heads");
        assert!(budget.take(ACCEPT_RESERVE).is_some());
    }
}

#[test]
fn a_waiting_request_is_charged_for_its_head_and_its_queue() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let waiter = budget.waiter(300, 0).unwrap();
    assert_eq!(waiter.bytes(), 300 + 2 * NARROW as u64);
}

#[test]
fn one_socket_gets_a_share_of_what_is_left_and_nothing_of_the_last_eighth() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let pool = budget.plan().pool.unwrap();
    let mut first = budget.sending();
    assert!(!first.widen(pool / 4) && first.widen(pool / 5));
    let mut all: Vec<Permit> = (0..1000).map(|_| budget.sending()).collect();
    let wide = all
        .iter_mut()
        .map_while(|permit| permit.widen(16_000).then_some(()));
    assert!(wide.count() > 100);
    assert!(budget.spent() < pool / 8 * 7, "{}", budget.spent());
    assert!(budget.exchange(300, 0).is_some(), "others still come in");
    drop((first, all));
    assert_eq!(budget.spent(), 0);
}

#[test]
fn nothing_gets_wide_while_memory_is_wanted() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let mut permit = budget.receiving(true);
    budget.press(true);
    assert!(!permit.widen(1000));
    budget.press(false);
    let mut context = Context::from_waker(Waker::noop());
    let mut waiter = Box::pin(budget.queue.until(CLAIM, || None::<()>));
    assert!(waiter.as_mut().poll(&mut context).is_pending());
    assert!(!permit.widen(1000) && budget.left_for_resting() == 0);
    drop(waiter);
    assert!(permit.widen(1000) && budget.left_for_resting() > 0);
}

#[test]
fn connections_of_clients_rest_wide_in_a_quarter_of_the_budget() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let quarter = budget.plan().pool.unwrap() / 4;
    let mut first = budget.receiving(true);
    assert!(first.widen(quarter / 2) && budget.left_for_resting() == quarter - quarter / 2);
    let mut second = budget.receiving(true);
    second.resize(quarter);
    assert_eq!(budget.left_for_resting(), 0);
    drop(first);
    assert_eq!(budget.left_for_resting(), 0, "the other has all of it");
    drop(second);
    assert_eq!(budget.left_for_resting(), quarter);
}

#[test]
fn requests_let_others_finish_where_messages_got_no_wide_buffer() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let much = budget.take(budget.plan().pool.unwrap() / 4);
    let admitted: Vec<_> = (0..FEW).map(|_| budget.exchange(300, 0)).collect();
    assert!(!budget.is_crowded(), "all were as wide as they needed");
    budget.was_narrowed();
    assert!(budget.is_crowded());
    (0..NARROWED).for_each(|_| budget.press(false));
    assert!(!budget.is_crowded(), "that was long ago");
    budget.was_narrowed();
    drop(admitted);
    assert!(!budget.is_crowded(), "few are at work");
    drop(much);
}

#[test]
fn buffers_are_freed_by_halves_until_none_is_left() {
    let buffers: Rc<Buffers> = Rc::default();
    let room = ReadSize::new(4096, true);
    drop([(); 5].map(|()| buffers.take(room)));
    for left in [2, 1] {
        assert!(buffers.trim(), "{left} are left");
        assert_eq!(buffers.free.borrow().len(), left);
    }
    assert!(!buffers.trim(), "none is left");
    assert_eq!(buffers.free.borrow().capacity(), 0);
}

#[test]
fn memory_is_short_above_a_quarter_and_where_it_is_pressed() {
    let budget = Budget::new(Plan {
        pool: Some(12 * EXCHANGE),
        ..Plan::new(None, 1, None)
    });
    let quarter = budget.take(3 * EXCHANGE);
    assert!(!budget.is_short(), "three quarters are left");
    let more = budget.take(1);
    assert!(budget.is_short(), "less is left");
    drop((quarter, more));
    budget.press(true);
    let first = budget.exchange(300, 0);
    assert!(budget.is_short() && first.is_some(), "one goes on always");
    assert!(budget.exchange(300, 0).is_none());
    budget.press(false);
    assert!(!budget.is_short() && budget.exchange(300, 0).is_some());
}

#[test]
fn dropped_permits_are_given_to_the_next_in_the_queue() {
    let budget = Budget::new(Plan {
        pool: Some(100),
        ..Plan::new(Some(10 << 20), 1, None)
    });
    let first = budget.take(80).unwrap();
    assert!(budget.take(21).is_none());
    let mut context = Context::from_waker(Waker::noop());
    let mut second = pin!(budget.queue.until(CLAIM, || budget.take(60)));
    let mut third = pin!(budget.queue.until(CLAIM, || budget.take(20)));
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert!(
        third.as_mut().poll(&mut context).is_pending(),
        "20 are free, but it is not its turn"
    );
    assert_eq!(budget.queue.len(), 2);
    drop(first);
    let Poll::Ready(second) = second.as_mut().poll(&mut context) else {
        panic!("80 came free")
    };
    let Poll::Ready(third) = third.as_mut().poll(&mut context) else {
        panic!("it is its turn now")
    };
    assert_eq!((budget.spent(), budget.queue.len()), (80, 0));
    drop((second, third));
    assert_eq!(budget.spent(), 0);
}

#[test]
fn a_waiter_that_leaves_does_not_block_the_queue() {
    let budget = Budget::new(Plan {
        pool: Some(100),
        ..Plan::new(Some(10 << 20), 1, None)
    });
    let _held = budget.take(80).unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let mut second = Box::pin(budget.queue.until(CLAIM, || budget.take(60)));
    let mut third = pin!(budget.queue.until(CLAIM, || budget.take(20)));
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert!(third.as_mut().poll(&mut context).is_pending());
    drop(second);
    assert!(third.as_mut().poll(&mut context).is_ready());
}

#[test]
fn buffers_are_reused_and_freed() {
    let buffers: Rc<Buffers> = Rc::default();
    let room = ReadSize::new(4096, true);
    let buffer = buffers.take(room);
    let place = buffer.as_ptr();
    drop(buffer);
    assert_eq!(
        buffers.take(room.at_most(4000)).as_ptr(),
        place,
        "the same one again"
    );
    assert_eq!(
        buffers.take(room.at_most(100)).len(),
        100,
        "a large one is not wasted"
    );
    assert_eq!(buffers.free.borrow().len(), 1, "a small one is not kept");
    drop((0..1000).map(|_| buffers.take(room)).collect::<Vec<_>>());
    let kept: usize = buffers.free.borrow().iter().map(Vec::len).sum();
    assert_eq!((kept, 0), (buffers.kept.get(), buffers.lent.get()));
    assert!(kept <= KEPT, "{kept} bytes");
    while buffers.trim() {}
    assert_eq!(buffers.kept.get(), 0);
}

#[test]
fn buffers_are_smaller_the_more_are_lent() {
    let buffers: Rc<Buffers> = Rc::default();
    let room = ReadSize::new(4096, false);
    let held: Vec<Buffer> = (0..100).map(|_| buffers.take(room)).collect();
    let sizes: Vec<usize> = held.iter().map(|buffer| buffer.len()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert_eq!((sizes[0], sizes[99]), (BULK, 4096));
    assert!(buffers.lent.get() < 1_000_000);
    drop(held);
    assert_eq!(buffers.take(room).len(), BULK);
}

#[test]
fn wide_and_free_buffers_are_paid_for_and_none_is_kept_where_memory_is_wanted() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let buffers = Rc::new(Buffers::within(&budget));
    let room = ReadSize::new(4096, false);
    let held: Vec<Buffer> = (0..100).map(|_| buffers.take(room)).collect();
    let wide: usize = held.iter().map(|it| it.len() - 4096).sum();
    assert!(wide > 100_000, "{wide}");
    assert!(budget.spent() >= wide as u64, "{}", budget.spent());
    drop(held);
    let kept = buffers.kept.get();
    assert!(kept > 100_000 && budget.spent() >= kept as u64, "{kept}");
    assert!(kept as u64 <= budget.plan().pool.unwrap() / 16, "{kept}");
    let held: Vec<Buffer> = (0..100).map(|_| buffers.take(room)).collect();
    budget.press(true);
    drop(held);
    assert_eq!(buffers.take(room).len(), 4096, "little where it is wanted");
    while buffers.trim() {}
    assert_eq!((buffers.kept.get(), budget.spent()), (0, 0));
    // and where everything else is spent
    budget.press(false);
    let _all = budget.force(budget.plan().pool.unwrap());
    assert_eq!(buffers.take(room).len(), 4096);
    assert_eq!(buffers.kept.get(), 0);
}

#[test]
fn read_sizes_follow_memory_and_the_configured_size() {
    let sizes = |least| [true, false].map(|wanted| ReadSize::new(least, wanted).most);
    assert_eq!(sizes(512), [512, BULK]);
    assert_eq!(sizes(32_768), [32_768, BULK]);
    assert_eq!(sizes(100_000), [100_000; 2]);
}

#[test]
fn a_buffer_that_grew_is_never_lent_again() {
    let buffers: Rc<Buffers> = Rc::default();
    let mut buffer = buffers.take(ReadSize::new(4096, true));
    buffer[0] = 7;
    assert!(!buffer.has_grown());
    buffer.grow(16 * 1024);
    assert_eq!((buffer.len(), buffer[0]), (16 * 1024, 7));
    assert_eq!(buffer.bytes.capacity(), 16 * 1024);
    assert!(buffer.has_grown());
    drop(buffer);
    assert_eq!((buffers.lent.get(), buffers.kept.get()), (0, 0));
}

#[test]
fn large_heads_have_a_fifth_of_the_budget_and_one_always_passes() {
    for limit in [1 << 20, 6 << 20, 10 << 20, 32 << 20] {
        let budget = Budget::new(Plan::new(Some(limit), 1, None));
        let pool = budget.plan().pool.unwrap();
        let all = budget.force(pool);
        let mut first = budget.large_head().expect("one can always be had");
        assert!(budget.large_head().is_none() && budget.handshake().is_some());
        drop(all);
        let more: Vec<Permit> = std::iter::from_fn(|| budget.large_head()).collect();
        assert!(budget.large_heads.spent.get() <= (pool / 5).max(first.bytes()));
        // a head of 5 kB gives back most, and lets others pass
        first.resize(head_price(5000));
        assert_eq!(first.bytes(), 20 * 1024);
        drop(more);
        drop(first);
        assert_eq!((budget.spent(), budget.large_heads.spent.get()), (0, 0));
    }
}

#[test]
fn a_permit_that_shrinks_lets_the_next_one_in() {
    let budget = Budget::new(Plan {
        pool: Some(100),
        ..Plan::new(Some(10 << 20), 1, None)
    });
    let mut permit = budget.take(80).unwrap();
    permit.resize(120);
    assert_eq!(budget.spent(), 120, "what cannot be refused is taken");
    let mut context = Context::from_waker(Waker::noop());
    let mut next = pin!(budget.queue.until(Claim::plain(), || budget.take(60)));
    assert!(next.as_mut().poll(&mut context).is_pending());
    permit.resize(40);
    assert!(next.as_mut().poll(&mut context).is_ready());
    drop(permit);
    assert_eq!(budget.spent(), 0);
}

#[test]
fn memory_of_the_configuration_is_not_given_to_clients() {
    let plan = |held| Plan::beside(held, Some(10 << 20), 1, None);
    let (small, large) = (plan(0).unwrap(), plan(3_000_000).unwrap());
    assert_eq!(large.pool.unwrap() + 3_000_000, small.pool.unwrap());
    assert!(large.connections < small.connections && large.exchanges() < small.exchanges());
    assert_eq!(plan(9_000_000), None, "nothing is left");
    assert!(Plan::beside(0, Some(4096), 1, None).is_some());
    assert!(Plan::beside(1 << 30, None, 1, None).is_some());
}

#[test]
fn memory_is_measured_between_two_ticks_where_much_is_spent() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let looks = Rc::new(Cell::new(0));
    let (counted, near) = (Rc::clone(&looks), Rc::new(Cell::new(false)));
    let is_near = Rc::clone(&near);
    budget.set_gauge(move || {
        counted.set(counted.get() + 1);
        is_near.get()
    });
    let first = budget.exchange(300, 0);
    assert_eq!(looks.get(), 0, "little is spent");
    let pool = budget.plan().pool.unwrap();
    let _much = budget.take(pool / 4);
    let admitted: Vec<_> = (0..32).map_while(|_| budget.exchange(300, 0)).collect();
    assert_eq!((admitted.len(), looks.get()), (32, 2));
    near.set(true);
    let more: Vec<_> = (0..32).map_while(|_| budget.exchange(300, 0)).collect();
    assert!((more.len() as u64) < LOOK, "{}", more.len());
    assert!(budget.is_pressed());
    drop((first, admitted, more));
}

#[test]
fn buffers_of_large_heads_have_few_sizes() {
    assert_eq!([0, 300, LARGE_HEAD].map(head_price), [0; 3]);
    let mut sizes: Vec<usize> = (LARGE_HEAD + 1..=LARGEST_HEAD).map(step).collect();
    sizes.dedup();
    assert_eq!(sizes, STEPS[..4]);
    assert_eq!(step(1 << 20), 1 << 20);
}

#[test]
fn a_refusal_is_reported_once() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    assert!(!budget.was_refused());
    let _all = budget.force(budget.plan().pool.unwrap());
    assert!(budget.head(300).is_none());
    assert!(budget.was_refused() && !budget.was_refused());
    assert!(budget.waiter(LARGE_HEAD + 1, 0).is_none());
    assert!(budget.was_refused());
}

#[test]
fn a_few_small_requests_wait_where_no_memory_is_left() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let _all = budget.force(budget.plan().pool.unwrap());
    let mut spared: Vec<_> = (0..3).map_while(|_| budget.waiter(300, 2)).collect();
    assert_eq!(spared.len(), 2);
    spared.pop();
    assert!(budget.waiter(LARGE_HEAD + 1, 2).is_none(), "it is large");
    assert!(budget.waiter(LARGE_HEAD, 2).is_some());
}

#[test]
fn http_2_connections_of_clients_get_half_of_the_budget() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let half = budget.plan().pool.unwrap() / 2;
    let mut all = Vec::new();
    while budget.has_room_for_http2() {
        all.push(budget.http2(0).unwrap());
    }
    assert_eq!(all.len() as u64, half / HTTP2_CONNECTION);
    assert!(budget.http2(0).is_none());
    assert!(budget.take_inside(HTTP2_CONNECTION).is_some());
    all.pop();
    let last = budget.http2(0);
    assert!(last.is_some(), "one has ended");
    drop((all, last));
    let _much = budget.take(budget.plan().pool.unwrap() - HTTP2_CONNECTION);
    assert!(!budget.has_room_for_http2(), "the rest is for connections");
}

#[test]
fn what_http_2_and_tls_cost_depends_on_the_limit() {
    let costs = |limit: u64| {
        let budget = Budget::new(Plan::new(Some(limit), 1, None));
        let upstream = budget.http2_upstream().map(|permit| permit.bytes());
        let client = budget.http2(7).map(|permit| permit.bytes());
        (upstream.unwrap(), client.unwrap(), budget.records(false))
    };
    let small = (HTTP2_UPSTREAM, HTTP2_CONNECTION + 7, RECORD_OUT.0);
    assert_eq!(costs(SMALL - 1), small);
    let wide = (HTTP2_UPSTREAM_WIDE, HTTP2_CONNECTION_WIDE + 7, RECORD_OUT.1);
    assert_eq!(costs(SMALL), wide);
}

#[test]
fn a_request_pays_for_its_head_its_body_and_its_tls() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let price = |head, records| budget.exchange(head, records).unwrap().bytes();
    assert_eq!(price(LARGE_HEAD, 0), EXCHANGE);
    assert_eq!(price(5_000, 0), EXCHANGE + 15_000);
    assert_eq!(budget.records(true), budget.records(false) + RECORD_IN);
    assert_eq!(price(300, 5_000), EXCHANGE + 5_000);
}

#[test]
fn memory_is_scarce_where_a_sixteenth_is_left() {
    let budget = Budget::new(Plan {
        pool: Some(16_000),
        ..Plan::new(None, 1, None)
    });
    let much = budget.take(15_000);
    assert!(!budget.is_scarce());
    let more = budget.take(1);
    assert!(budget.is_scarce());
    drop((much, more));
}

#[test]
fn who_waits_for_a_turn_is_not_overtaken() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    assert!(!budget.takes_turns());
    let mut waits = Box::pin(budget.turns.queue.until(CLAIM, || None::<()>));
    let mut context = Context::from_waker(Waker::noop());
    assert!(waits.as_mut().poll(&mut context).is_pending());
    assert!(budget.takes_turns());
    drop(waits);
    assert!(!budget.takes_turns());
}

#[test]
fn memory_that_comes_back_wakes_whoever_waits_for_it() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let queues = [
        &budget.queue,
        &budget.turns.queue,
        &budget.lanes.queue,
        &*budget.room,
        &budget.handshakes.queue,
        &budget.large_heads.queue,
    ];
    let counts = queues.map(|_| Arc::new(Count::default()));
    let mut waits = queues.map(|queue| Box::pin(queue.until(CLAIM, || None::<()>)));
    for (wait, count) in waits.iter_mut().zip(&counts) {
        let waker = Waker::from(Arc::clone(count));
        let mut context = Context::from_waker(&waker);
        assert!(wait.as_mut().poll(&mut context).is_pending());
    }
    let woken = || counts.each_ref().map(|count| count.take());
    let mut permit = budget.force(100);
    permit.resize(200);
    assert_eq!(woken(), [0; 6]);
    permit.resize(50);
    assert_eq!(woken(), [1, 1, 1, 1, 0, 0]);
    drop(permit);
    assert_eq!(woken(), [1, 1, 1, 1, 0, 0]);
    let handshake = budget.handshake();
    let mut head = budget.large_head().unwrap();
    head.resize(100);
    assert_eq!(woken(), [1, 1, 1, 1, 0, 1]);
    drop(head);
    assert_eq!(woken(), [1, 1, 1, 1, 0, 1]);
    drop(handshake);
    assert_eq!(woken(), [1, 1, 1, 1, 1, 0]);
    budget.press(true);
    assert_eq!(woken(), [0; 6]);
    budget.press(false);
    assert_eq!(woken(), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_configured_size_is_lent_and_paid_for_in_any_case() {
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let buffers = Rc::new(Buffers::within(&budget));
    let pool = budget.plan().pool.unwrap();
    let all = budget.force(pool);
    let mut large = buffers.take(ReadSize::new(64 * 1024, true));
    assert_eq!(large.len(), 64 * 1024);
    assert!(budget.spent() >= pool + 60 * 1024);
    drop(all);
    // one that grows is its owner's, and one that is not kept is not paid for
    large.grow(65 * 1024);
    assert_eq!(budget.spent(), 0);
    let tiny = buffers.take(ReadSize::new(5_000, true));
    budget.press(true);
    drop(tiny);
    assert_eq!(budget.spent(), 0);
}

#[test]
fn limits_decide_what_is_tight_and_what_is_small() {
    let plan = |limit| Plan::new(Some(limit), 1, None);
    for (limit, tight, small) in [
        (SMALL - 1, true, true),
        (SMALL, true, false),
        (AMPLE - 1, true, false),
        (AMPLE, false, false),
    ] {
        assert_eq!((plan(limit).tight, plan(limit).small), (tight, small));
    }
    // a part of the limit and 100 kB of each further worker have no permit
    let pool = plan(120 << 20).pool.unwrap();
    assert_eq!(pool, (110 << 20) - BASE);
    let each = Plan::new(Some(120 << 20), 4, None).pool.unwrap();
    assert_eq!(each, (pool - 300_000) / 4);
}

#[test]
fn a_connection_may_need_two_descriptors() {
    let plan = Plan::new(None, 2, None);
    let (plan, upstreams) = plan.within_descriptors(1_024, 2, 1).unwrap();
    // 16, five of each worker, and a sixteenth are for the process
    assert_eq!((plan.connections, upstreams), ((1_024 - 90) / 4, 233));
    // a worker needs two more for each further listener
    assert_eq!(plan.within_descriptors(33, 2, 2).unwrap_err(), 34);
    let (plan, upstreams) = plan.within_descriptors(34, 2, 2).unwrap();
    assert_eq!((plan.connections, upstreams), (1, 1));
}
