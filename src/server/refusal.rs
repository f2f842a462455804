//! Requests that are refused before there is an exchange: the response, the log line and the counters.

use std::{future::poll_fn, pin::Pin, sync::Once, task::Poll, time::Instant};

use http::{Method, header};
use tokio::io::AsyncWrite;

use crate::{
    config::Level,
    connection_table::{Directive, SlotRef, phase::Phase},
    cors::Verdict,
    exchange::worker::Worker,
    failure::Failure,
    fields::Fields,
    http1::{refusal::response, request_head, server::ServerCodec},
    observe::{
        log::{self, Record},
        repeats::Kind,
    },
    outcome::Outcome,
    server::closing::{LINGER, Next, leave},
};

/// Most bytes that are read after a refusal: a client that sends more does not read it.
pub const REFUSED_REST: usize = 256 * 1024;

/// A client that speaks TLS to a plain listener is usually a mistake in the configuration of one of the two, so the
/// first one is logged at `warn`. Scanners do it too, so later ones are logged like other refusals.
fn refusal_level(failure: &Failure) -> Level {
    static TOLD: Once = Once::new();
    let mut level = Level::Debug;
    if *failure == Failure::TlsHello {
        TOLD.call_once(|| level = Level::Warn);
    }
    level
}

/// Sends the response to a request that is refused; the connection ends.
pub async fn refuse(
    worker: &Worker,
    mut codec: ServerCodec,
    slot: &SlotRef,
    failure: &Failure,
) -> Next {
    tell_refused(worker, slot, failure);
    slot.enter(Phase::Lingering, Some(LINGER));
    let answer = response(failure, &grant(worker, &codec));
    let mut bytes = answer.as_slice();
    let written = poll_fn(|context| {
        while !bytes.is_empty() {
            match Pin::new(&mut codec.io).poll_write(context, bytes) {
                Poll::Ready(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if slot.is_overdue() || slot.order() == Directive::Leave => {
                    return Poll::Ready(false);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(true)
    })
    .await;
    // where memory is short, the input that a flood has in the kernel's queues costs more than the response is worth
    let is_flood = matches!(
        failure,
        Failure::NoMemory | Failure::HeadTooLarge | Failure::TargetTooLong
    );
    if written && !(is_flood && worker.budget.plan().tight) {
        return Next::Lingers(codec.into_stream(), REFUSED_REST);
    }
    leave(worker, &codec.io);
    Next::Over
}

/// The CORS headers of the global policy for a head that is refused, so that a browser shows the refusal to the page.
fn grant(worker: &Worker, codec: &ServerCodec) -> Fields {
    let state = worker.state();
    let mut fields = Fields::new();
    if let Some(policy) = &state.config.cors {
        let asked = request_head::origin(codec.unread()).map(|origin| (header::ORIGIN, origin));
        if let Verdict::Grant(grant) = policy.judge(&Method::GET, &asked.into_iter().collect()) {
            policy.stamp(&grant, &mut fields);
        }
    }
    fields
}

/// Counts and logs a refusal; where the memory budget was exhausted, at the level of any other 503.
pub fn tell_refused(worker: &Worker, slot: &SlotRef, failure: &Failure) {
    let (status, outcome) = (failure.status().as_u16(), failure.outcome());
    worker.metrics.answered(status);
    worker.metrics.failed(outcome);
    let client = log::client(slot.client());
    let (bound, value) = worker.memory_bound();
    let fields: [log::Field<'_>; 5] = [
        ("client", &client),
        ("status", &status),
        ("reason", failure),
        ("bound", &bound),
        ("value", &value),
    ];
    match failure {
        Failure::NoMemory
            if worker
                .repeats
                .is_first(Kind("no answer", outcome), slot.now()) =>
        {
            log::warn("no answer", &fields);
        }
        Failure::NoMemory => {}
        _ => log::event(
            refusal_level(failure),
            "refused",
            fields.get(..3).unwrap_or_default(),
        ),
    }
    let record = Record::begin(slot.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.answers(status);
        record.outcome = outcome;
    }
}

/// Counts and logs a request that does not even get the 503: the reserve is in use, or the time for it is over, or its
/// client has left.
#[cold]
pub fn tell_unanswered(worker: &Worker, slot: &SlotRef, outcome: Outcome) {
    let outcome = if slot.order() == Directive::Leave {
        slot.leave_outcome()
    } else {
        outcome
    };
    worker.metrics.failed(outcome);
    let client = log::client(slot.client());
    let (bound, value) = worker.memory_bound();
    let fields: [log::Field<'_>; 4] = [
        ("client", &client),
        ("reason", &outcome),
        ("bound", &bound),
        ("value", &value),
    ];
    let kind = Kind("no answer", outcome);
    match outcome {
        Outcome::ClientGone => log::debug(kind.0, fields.get(..2).unwrap_or_default()),
        _ if worker.repeats.is_first(kind, slot.now()) => log::warn(kind.0, &fields),
        _ => {}
    }
    let record = Record::begin(slot.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.outcome = outcome;
    }
}
