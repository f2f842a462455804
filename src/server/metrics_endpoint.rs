//! The metrics endpoint: answers GET and HEAD of `/metrics` at an address of its own, one request for each connection.
//!
//! Requests are parsed as strictly as on other listeners. The page is written in pieces, because a configuration may
//! have thousands of routes.

use std::{collections::VecDeque, future::poll_fn, io, pin::Pin, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
};

use crate::{
    clock::{sleep, timeout},
    exchange::worker::Worker,
    failure::Failure,
    fields::Fields,
    http1::{refusal::response, request_head},
    memory::prices::CONNECTION,
    net::Stream,
    observe::metrics::{self, Metrics},
    server::listener::{ListeningSocket, Trouble},
};

/// How long a client of this endpoint may take.
const EXPOSURE: Duration = Duration::from_secs(5);

/// Most clients at a time.
const ASKERS: usize = 4;

/// Bytes of each client beside its connection: a head of at most 8 kB, and the page's largest piece.
const ASKER: u64 = 24_000;

/// Most bytes of a request head.
const MAX_HEAD: usize = 8192;

/// Serves clients of the endpoint. [`ASKERS`] are served at a time, and are paid for whether there is memory or not.
/// One more replaces the client that was connected longest, so that silent connections do not block the endpoint.
///
/// # Errors
/// The listener fails for good.
pub async fn answer(worker: Rc<Worker>, listener: ListeningSocket) -> Result<()> {
    let mut askers: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(ASKERS);
    loop {
        let io = match listener.accept(&worker.budget).await {
            Ok((io, _)) => io,
            Err(error) if Trouble::of(&error) == Trouble::ListeningSocket => {
                return Err(error).context("accept");
            }
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
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

/// The response to a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The page, chunked or (HTTP/1.0) ended by the close; for HEAD without it.
    Page { is_head: bool, is_chunked: bool },
    /// 404.
    NotFound,
    /// 405.
    NotAllowed,
    /// The request is malformed.
    Refused(Failure),
}

/// The answer that a head calls for; `None` while the head is incomplete.
fn asked(bytes: &[u8], scanned: &mut usize) -> Option<Answer> {
    let head = match request_head::head(bytes, scanned, MAX_HEAD) {
        Ok(head) => head?,
        Err(failure) => return Some(Answer::Refused(failure)),
    };
    let is_http10 = head.is_http10;
    let text = bytes.get(head.skip..head.skip + head.len);
    let parts = match request_head::parts(text.unwrap_or_default().to_vec(), head) {
        Ok(parts) => parts,
        Err(failure) => return Some(Answer::Refused(failure)),
    };
    Some(match (parts.uri.path(), parts.method.as_str()) {
        ("/metrics", method @ ("GET" | "HEAD")) => Answer::Page {
            is_head: method == "HEAD",
            is_chunked: !is_http10,
        },
        ("/metrics", _) => Answer::NotAllowed,
        _ => Answer::NotFound,
    })
}

async fn tell(mut io: Stream, metrics: &Metrics) -> io::Result<()> {
    let (mut bytes, mut scanned) = (Vec::with_capacity(1024), 0);
    let answer = loop {
        if let Some(answer) = asked(&bytes, &mut scanned) {
            break answer;
        }
        let mut space = [0; 1024];
        let mut buffer = ReadBuf::new(&mut space);
        poll_fn(|context| Pin::new(&mut io).poll_read(context, &mut buffer)).await?;
        if buffer.filled().is_empty() {
            return Ok(());
        }
        bytes.extend_from_slice(buffer.filled());
    };
    drop(bytes);
    match answer {
        Answer::Page {
            is_head,
            is_chunked,
        } => page(&mut io, metrics, is_head, is_chunked).await?,
        Answer::Refused(failure) => write(&mut io, &response(&failure, &Fields::new())).await?,
        Answer::NotFound => {
            let text = own("404 Not Found", "", "The counters are at /metrics.\n");
            write(&mut io, text.as_bytes()).await?;
        }
        Answer::NotAllowed => {
            let sentence = "This method is not allowed.\n";
            let text = own("405 Method Not Allowed", "allow: GET, HEAD\r\n", sentence);
            write(&mut io, text.as_bytes()).await?;
        }
    }
    poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await?;
    // read on for a short time, so that a reset does not discard the answer (RFC 9112 §9.6); the time-out bounds it
    let mut space = [0; 1024];
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        poll_fn(|context| Pin::new(&mut io).poll_read(context, &mut buffer)).await?;
        if buffer.filled().is_empty() {
            return Ok(());
        }
    }
}

/// A complete response other than the page.
fn own(status: &str, extra: &str, sentence: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n{extra}connection: close\r\n\r\n{sentence}",
        sentence.len()
    )
}

async fn page(
    io: &mut Stream,
    metrics: &Metrics,
    is_head: bool,
    is_chunked: bool,
) -> io::Result<()> {
    let framing = if is_chunked {
        "transfer-encoding: chunked\r\n"
    } else {
        ""
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\n{framing}connection: close\r\n\r\n",
        metrics::CONTENT_TYPE
    );
    write(io, head.as_bytes()).await?;
    if is_head {
        return Ok(());
    }
    let (mut text, mut routes) = (String::new(), metrics.route_pages());
    metrics.render(&mut text);
    loop {
        if is_chunked {
            let piece = format!("{:x}\r\n{text}\r\n", text.len());
            write(io, piece.as_bytes()).await?;
        } else {
            write(io, text.as_bytes()).await?;
        }
        text.clear();
        if !routes.render(&mut text) {
            break;
        }
    }
    if is_chunked {
        write(io, b"0\r\n\r\n").await?;
    }
    Ok(())
}

async fn write(io: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|context| Pin::new(&mut *io).poll_write(context, bytes)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_is_served_and_garbage_is_refused() {
        let page = |is_head, is_chunked| {
            Some(Answer::Page {
                is_head,
                is_chunked,
            })
        };
        for (request, answer) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                page(false, true),
            ),
            (
                "GET /metrics?x=y HTTP/1.1\r\nHost: a\r\n\r\n",
                page(false, true),
            ),
            (
                "GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                page(false, true),
            ),
            (
                "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                page(true, true),
            ),
            ("GET /metrics HTTP/1.0\r\n\r\n", page(false, false)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", None),
            ("", None),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Some(Answer::NotFound)),
            (
                "POST /x HTTP/1.1\r\nHost: a\r\n\r\n",
                Some(Answer::NotFound),
            ),
            (
                "POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                Some(Answer::NotAllowed),
            ),
        ] {
            assert_eq!(asked(request.as_bytes(), &mut 0), answer, "{request}");
        }
        for garbage in [
            "garbage\r\n\r\n",
            "GET /metrics HTTP/1.1\r\n\r\n",
            "\x16\x03\x01\n\n",
        ] {
            let answer = asked(garbage.as_bytes(), &mut 0);
            assert!(
                matches!(answer, Some(Answer::Refused(_))),
                "{garbage:?}: {answer:?}"
            );
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert!(matches!(
            asked(long.as_bytes(), &mut 0),
            Some(Answer::Refused(_))
        ));
    }
}
