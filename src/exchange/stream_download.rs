//! The body of a response on its way from an HTTP/2 stream to the client.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body as _, Frame};

use crate::{
    exchange::{
        client::Client,
        deadline::{Deadline, Limits},
        stream_upload::StreamUpload,
        upload::{Upload, UploadError},
    },
    http1::headers,
    http2::client::asking::ResponseBody,
    memory::chunk::BodyChunk,
    outcome::Outcome,
    upstream::pool::StreamLease,
};

/// The body of an answer on its way to the client. What the client has not taken is not taken from the stream, whose window
/// then stops the upstream.
#[derive(Debug)]
pub struct StreamDownload<'a> {
    client: &'a Client<'a>,
    incoming: ResponseBody,
    /// What is left of the request; dropped before `lease`, so that the stream is over when another takes its place.
    upload: Option<(StreamUpload, Upload)>,
    /// `None` once the answer is whole.
    lease: Option<StreamLease>,
    passes_trailers: bool,
    /// Fields that do not pass behind it.
    withheld: Vec<HeaderName>,
    /// The time-outs of what is left of the request.
    limits: Limits,
    deadline: Deadline,
}

impl<'a> StreamDownload<'a> {
    /// The rest of an answer; `upload` is the request where it is not sent to its end yet.
    pub fn new(
        client: &'a Client<'a>,
        incoming: ResponseBody,
        upload: Option<(StreamUpload, Upload)>,
        lease: StreamLease,
        passed: (bool, Vec<HeaderName>),
        limits: Limits,
    ) -> StreamDownload<'a> {
        let (passes_trailers, withheld) = passed;
        StreamDownload {
            client,
            incoming,
            upload,
            lease: Some(lease),
            passes_trailers,
            withheld,
            limits,
            deadline: Deadline::default(),
        }
    }

    /// How long the client may give no byte of what it still owes; `None` = no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.limits.read()
    }

    /// Whether the client has all of it.
    pub fn is_end(&self) -> bool {
        self.lease.is_none() || self.incoming.is_end_stream()
    }

    /// How much is left; `None` where it is not known.
    pub fn remaining(&self) -> Option<u64> {
        if self.is_end() {
            return Some(0);
        }
        self.incoming.size_hint().exact()
    }

    /// The next part; `None` at the end. A body that breaks off is an error, never an end.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
        if self.lease.is_none() {
            return Poll::Ready(None);
        }
        let frame = loop {
            match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                None => {
                    self.lease = None;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // an empty DATA frame says no more than that the stream has ended
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(Ok(frame)) => break frame,
            }
        };
        match frame.into_data() {
            Ok(bytes) => Poll::Ready(Some(Ok(Frame::data(BodyChunk::shared(bytes))))),
            Err(frame) => {
                self.lease = None;
                let trailers = frame.into_trailers().unwrap_or_default();
                let trailers = headers::passed_trailers(&trailers, &self.withheld);
                let has_some = self.passes_trailers && !trailers.is_empty();
                Poll::Ready(has_some.then(|| Ok(Frame::trailers(trailers))))
            }
        }
    }

    /// Sends on what is left of the request. An upstream that takes no more may still answer.
    ///
    /// # Errors
    /// The same as those of a download in HTTP/1.1.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let client = self.client;
        let Some((stream, upload)) = &mut self.upload else {
            return Ok(());
        };
        let slot = client.exchange_context.slot;
        let outcome = match stream.poll(context, upload, client) {
            Poll::Pending => {
                let wait = stream.wait(client, upload);
                if !self.deadline.is_past(slot, wait, &self.limits, None) {
                    return Ok(());
                }
                Some(wait.failure().outcome())
            }
            Poll::Ready(Err(UploadError::TooLarge)) => Some(Outcome::BodyTooLarge),
            Poll::Ready(Err(_)) => Some(Outcome::BodyBroken),
            Poll::Ready(Ok(())) => None,
        };
        self.upload = None;
        slot.uploads(false);
        self.deadline.end(slot);
        let Some(outcome) = outcome else {
            return Ok(());
        };
        client.exchange_context.note(outcome);
        self.lease = None;
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}
