//! A request on its way to the upstream in HTTP/2.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

use crate::{
    exchange::{
        client::Client,
        deadline::Wait,
        upload::{Upload, UploadError},
    },
    http2::client::outgoing::Outgoing,
    memory::chunk::BodyChunk,
    yield_budget::YieldBudget,
};

/// The body of a request on its way into an HTTP/2 stream; on drop the stream is reset, unless it has ended.
#[derive(Debug)]
pub struct StreamUpload {
    outgoing: Rc<Outgoing>,
}

impl StreamUpload {
    /// The body behind a head that is sent on a stream.
    pub fn new(upload: &Upload) -> StreamUpload {
        StreamUpload {
            outgoing: Outgoing::new(!upload.has_more()),
        }
    }

    /// Where hyper takes the body from.
    pub fn outgoing(&self) -> &Rc<Outgoing> {
        &self.outgoing
    }

    /// What is waited for while it is not done.
    pub fn wait(&self, client: &Client<'_>, upload: &Upload) -> Wait {
        if self.outgoing.is_done() {
            Wait::Answer
        } else if self.outgoing.is_empty() && upload.has_more() {
            Wait::Client(client.bytes_read())
        } else {
            let sent = client.exchange_context.sent.get();
            Wait::Upstream(self.outgoing.taken().wrapping_add(sent))
        }
    }

    /// Gives hyper what the client sends; ready when hyper has all of it.
    ///
    /// # Errors
    /// Those of the client.
    pub fn poll(
        &self,
        context: &mut Context<'_>,
        upload: &mut Upload,
        client: &Client<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let mut yield_budget = YieldBudget::new();
        while !self.outgoing.is_done() {
            if !self.outgoing.has_room(context) || !upload.has_more() {
                return Poll::Pending;
            }
            ready!(yield_budget.poll_next(context));
            let frame = ready!(upload.poll_frame(context, client))?;
            let is_last = !upload.has_more();
            match frame.map(|frame| frame.map_data(BodyChunk::into_bytes)) {
                Some(frame) if frame.data_ref().is_none_or(|data| !data.is_empty()) => {
                    self.outgoing.put(frame, is_last);
                }
                _ if is_last => self.outgoing.end(),
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamUpload {
    fn drop(&mut self) {
        if !self.outgoing.is_done() {
            self.outgoing.give_up();
        }
    }
}
