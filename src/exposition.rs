//! The page of counters, answered to Prometheus at an address of its own.

use std::{collections::VecDeque, pin::Pin, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    budget::CONNECTION,
    dial::Io,
    door::Listener,
    metrics::{self, Metrics},
    worker::Worker,
};

/// How long whoever asks for the metrics may take.
const EXPOSURE: Duration = Duration::from_secs(5);

/// How many may ask at a time.
const ASKERS: usize = 4;

/// Bytes of each beside its connection: a head of 8 kB at most, and the page twice.
const ASKER: u64 = 24_000;

/// Answers Prometheus: whatever is asked, the counters are the answer. A few are answered at a time, paid for whether
/// there is memory or not; when one more comes, whoever is at it longest gives way, so that nobody who is silent keeps
/// the others from being heard.
pub async fn answer(worker: Rc<Worker>, listener: Listener) {
    let mut askers: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(ASKERS);
    loop {
        let Ok((io, _)) = listener.accept(worker.budget.plan()).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        askers.retain(|asker| !asker.is_finished());
        if askers.len() == ASKERS
            && let Some(longest) = askers.pop_front()
        {
            longest.abort();
        }
        let worker = Rc::clone(&worker);
        askers.push_back(tokio::task::spawn_local(async move {
            let _permit = worker.budget.force(CONNECTION + ASKER);
            drop(timeout(EXPOSURE, tell(io, &worker.metrics)).await);
        }));
    }
}

async fn tell(mut io: Io, metrics: &Metrics) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < 8192 {
        let mut space = [0; 1024];
        let mut buffer = ReadBuf::new(&mut space);
        std::future::poll_fn(|context| Pin::new(&mut io).poll_read(context, &mut buffer)).await?;
        if buffer.filled().is_empty() {
            return Ok(());
        }
        head.extend_from_slice(buffer.filled());
    }
    let mut text = String::new();
    metrics.render(&mut text);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        metrics::CONTENT_TYPE,
        text.len()
    );
    let mut bytes = answer.as_bytes();
    while !bytes.is_empty() {
        let count =
            std::future::poll_fn(|context| Pin::new(&mut io).poll_write(context, bytes)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    std::future::poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await
}
