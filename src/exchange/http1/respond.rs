//! Writes the answer to an HTTP/1.1 client: its head, then its body as it arrives.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header};
use http_body::{Body as _, Frame};

use crate::{
    exchange::{
        answer::Answer,
        body::Body,
        client::Client,
        http1::{connection::Connection, mode::ConnectionMode},
    },
    fields::line,
    http1::{framing::Framing, headers, write_buffer::WriteBuffer},
    memory::prices::{LARGE_HEAD, in_step},
    yield_budget::YieldBudget,
};

/// The framing of an answer's body.
fn framing_of(answer: &Answer<'_>, mode: ConnectionMode) -> Framing {
    let is_bodiless = answer.status.is_informational()
        || matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    match answer.body.size_hint().exact() {
        _ if mode.is_head || is_bodiless => Framing::Nothing,
        Some(length) => Framing::Length(length),
        None if mode.is_http10 => Framing::Close,
        None => Framing::Chunked,
    }
}

/// Writes an answer to its end. Says whether the client can send another request.
///
/// # Errors
/// The client takes no more of it, or its body broke off.
pub async fn send(
    connection: Connection<'_>,
    answer: Answer<'_>,
    mode: ConnectionMode,
) -> io::Result<bool> {
    let client = connection.client;
    let framing = framing_of(&answer, mode);
    let read_timeout = answer.body.read_timeout();
    let mut stays = mode.stays && framing != Framing::Close;
    if stays && !connection.is_between() {
        stays = Box::pin(can_stay(connection, &answer.body)).await;
    }
    if stays {
        connection.promise_to_stay();
    }
    let mut head = head(&answer, mode, framing, stays);
    // its fields are slices of what was read, and would be held until the client has taken all of it
    let Answer {
        headers,
        reason,
        body,
        ..
    } = answer;
    drop((headers, reason));
    let is_large = head.capacity() > LARGE_HEAD || client.exchange_context.holds_head();
    if is_large {
        pay_for(connection.client, &mut head);
    }
    if framing == Framing::Close {
        connection.ends_by_close(true);
    }
    let mut writer = ResponseWriter {
        connection,
        write_buffer: WriteBuffer::new(head),
        body,
        framing,
        is_large,
        ended: None,
    };
    poll_fn(|context| writer.poll(context)).await?;
    client.exchange_context.complete.set(true);
    if framing == Framing::Close {
        connection.ends_by_close(false);
    }
    if !stays || connection.is_between() {
        return Ok(stays);
    }
    // rare: boxed, it does not enlarge the future of other answers
    drop(writer);
    Ok(Box::pin(keep_word(connection, read_timeout)).await)
}

/// Decides, once and before the head is written, whether the connection stays after an answer to an incomplete request: an
/// answer that says so is never followed by a close while the request still arrives (RFC 9112 §9.6).
async fn can_stay(connection: Connection<'_>, body: &Body<'_>) -> bool {
    if matches!(body, Body::Upstream(_) | Body::Stream(_)) {
        return connection.owes_little();
    }
    // the rest of this request is not read any more; where it has arrived already, the connection need not end for it
    poll_fn(|context| Poll::Ready(connection.poll_drain(context))).await
}

/// Reads the rest of the request after an answer that said that the connection stays. It holds neither an upstream
/// connection nor a permit of `max_concurrent_requests` meanwhile.
async fn keep_word(connection: Connection<'_>, read_timeout: Option<Duration>) -> bool {
    let slot = connection.client.exchange_context.slot;
    connection.client.exchange_context.place.take();
    slot.client_blocks();
    let mut seen = None;
    let is_whole = poll_fn(|context| connection.poll_rest(context, &mut seen, read_timeout)).await;
    slot.clear_deadline();
    is_whole
}

/// Sets the price of a large head to what it holds while it waits to be written, with the body bytes that came after
/// it.
#[cold]
fn pay_for(client: &Client<'_>, head: &mut Vec<u8>) {
    *head = in_step(std::mem::take(head));
    let rest = client.exchange_context.rest.get() as usize;
    let bytes = head.capacity() + rest + client.interim_len();
    client.exchange_context.resize_head(bytes);
}

fn head(answer: &Answer<'_>, mode: ConnectionMode, framing: Framing, stays: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    status_line(&mut out, answer.status, answer.reason.as_deref());
    answer.headers.write_where(&mut out, |name, _| match name {
        b"content-length" | b"transfer-encoding" | b"connection" => false,
        b"trailer" => framing == Framing::Chunked,
        _ => true,
    });
    match framing {
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => content_length(&mut out, length),
        // the length of the body that a GET would have brought (RFC 9110 §8.6)
        Framing::Nothing if mode.is_head || answer.status == StatusCode::NOT_MODIFIED => {
            if let Some(length) = answer.headers.get(header::CONTENT_LENGTH) {
                line(&mut out, b"content-length", length);
            } else if let Body::Own(_) | Body::Made(_) = answer.body
                && answer.status != StatusCode::NO_CONTENT
            {
                content_length(&mut out, answer.body.size_hint().lower());
            }
        }
        Framing::Nothing | Framing::Close => {}
    }
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    } else if !stays {
        out.extend_from_slice(b"connection: close\r\n");
    } else if mode.is_http10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn status_line(out: &mut Vec<u8>, status: StatusCode, reason: Option<&[u8]>) {
    if status == StatusCode::OK && reason.is_none() {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    let usual = status.canonical_reason().unwrap_or("");
    out.extend_from_slice(reason.unwrap_or(usual.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    headers::push_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// An answer that is being written.
struct ResponseWriter<'a> {
    connection: Connection<'a>,
    write_buffer: WriteBuffer,
    body: Body<'a>,
    framing: Framing,
    /// The head is larger than the price of an exchange covers.
    is_large: bool,
    /// The body's result, once it has ended.
    ended: Option<io::Result<()>>,
}

impl ResponseWriter<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.body.poll_upload(context)?;
        let mut yield_budget = YieldBudget::new();
        loop {
            // One piece at a time: the next is read when the kernel has taken this one, so that a slow client costs one
            // buffer. The first leaves together with the head, if it is here.
            if self.ended.is_none()
                && (self.write_buffer.is_fresh() || self.write_buffer.is_empty())
                && self.poll_body(context).is_pending()
                && self.write_buffer.is_empty()
            {
                self.connection.client.rests();
                return Poll::Pending;
            }
            while !self.write_buffer.is_empty() {
                let count = ready!(
                    self.connection
                        .poll_write(context, &self.write_buffer.slices())
                )?;
                let count = self.write_buffer.wrote(count);
                self.connection.client.exchange_context.gave_out(count);
                if self.is_large && self.write_buffer.forget_head() && !self.write_buffer.has_data()
                {
                    self.is_large = false;
                    self.connection.client.exchange_context.free_head();
                }
            }
            self.write_buffer.forget_text();
            if let Some(result) = self.ended.take() {
                return Poll::Ready(result);
            }
            ready!(yield_budget.poll_next(context));
        }
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.framing == Framing::Nothing {
            self.ended = Some(Ok(()));
            return Poll::Ready(());
        }
        let is_chunked = self.framing == Framing::Chunked;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(piece))) => {
                self.write_buffer.put(piece, is_chunked);
                if self.body.is_end_stream() {
                    if is_chunked {
                        self.write_buffer.end_chunks();
                    }
                    self.ended = Some(Ok(()));
                }
            }
            Some(Ok(Err(frame))) => {
                if is_chunked {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.write_buffer.last_chunk(&trailers);
                }
                self.ended = Some(Ok(()));
            }
            Some(Err(error)) => {
                self.connection.client.exchange_context.note_cut(&error);
                self.ended = Some(Err(error));
            }
            None => {
                if is_chunked {
                    self.write_buffer.last_chunk(&HeaderMap::new());
                }
                self.ended = Some(Ok(()));
            }
        }
        Poll::Ready(())
    }
}
