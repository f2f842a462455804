//! A client's connection with TLS: the socket, and the TLS session on it.
//!
//! A write counts only when the kernel has its whole record. So a caller that gets `Pending` must call again with the
//! same bytes (more may follow them), as all callers here do, and no byte of an answer is left in the process at its
//! end.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Stream,
    session::{Session, Until},
};
use crate::memory::{
    budget::{Budget, Permit},
    prices::TLS_CLIENT,
};

/// A connection with TLS.
#[derive(Debug)]
pub struct Secured {
    /// The socket: TCP or unix.
    io: Stream,
    session: Session,
    budget: Rc<Budget>,
    /// Pays for an idle session.
    _permit: Permit,
    /// Pays for part of a record that arrived between two requests.
    partial: Option<Permit>,
    /// Whether an exchange or a handshake pays for the records.
    is_paid: bool,
    /// The subject of the client's certificate.
    subject: Option<Rc<str>>,
}

/// Most bytes of plain text in one record: where memory is small, and elsewhere.
const RECORD: (usize, usize) = (4 * 1024, 16 * 1024);

impl Secured {
    /// A connection from which nothing was read.
    ///
    /// # Errors
    /// A configuration that rustls does not accept.
    pub fn new(
        io: Stream,
        config: Arc<ServerConfig>,
        budget: &Rc<Budget>,
    ) -> Result<Secured, rustls::Error> {
        Ok(Secured {
            io,
            session: Session::new(config)?,
            budget: Rc::clone(budget),
            _permit: budget.force(TLS_CLIENT),
            partial: None,
            // by the permit of the handshake
            is_paid: true,
            subject: None,
        })
    }

    /// The socket.
    pub fn io(&self) -> &Stream {
        &self.io
    }

    /// The same, to be changed.
    pub fn io_mut(&mut self) -> &mut Stream {
        &mut self.io
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The subject of the client's certificate, as RFC 4514 writes it; `None` = the client was not asked for one.
    pub fn subject(&self) -> Option<&Rc<str>> {
        self.subject.as_ref()
    }

    /// Sets the subject of the client's certificate.
    pub fn set_subject(&mut self, subject: &str) {
        self.subject = Some(subject.into());
    }

    /// Says whether an exchange, or a handshake, pays for the records that are held from now on.
    pub fn set_paid(&mut self, is_paid: bool) {
        self.is_paid = is_paid;
        if is_paid {
            self.partial = None;
        }
    }

    /// Whether part of a record is held.
    pub fn is_amid_record(&self) -> bool {
        self.session.held() > 0
    }

    /// One step of the handshake: reads once and answers. Ready where bytes arrived.
    ///
    /// # Errors
    /// Those of the socket, its end among them; `InvalidData` where the client violates the protocol or has nothing in
    /// common with us.
    pub fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if ready!(self.poll_fill(context))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.advance(context, Until::Blocked)?;
        self.session.shrink();
        Poll::Ready(Ok(()))
    }

    /// Ready when there may be something to read.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_read_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let session = &self.session;
        if session.readable() > 0 || session.has_record() || session.has_ended() {
            return Poll::Ready(Ok(()));
        }
        self.io.poll_read_ready(context)
    }

    /// Like [`Stream::poll_peek`]; the bytes that are seen may be a record without data.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_peek(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.session.readable() > 0 || self.session.has_record() {
            return Poll::Ready(Ok(1));
        }
        self.io.poll_peek(context)
    }

    /// Sends `close_notify`, as far as the kernel takes it at once, so that the close is no truncation. For connections
    /// whose last answer is complete; not where an answer was cut short.
    pub fn say_goodbye(&mut self, context: &mut Context<'_>) {
        if self.session.pending().is_empty() && !self.session.is_handshaking() {
            self.session.close();
            let _ = self.poll_send(context);
        }
    }

    fn advance(&mut self, context: &mut Context<'_>, until: Until) -> io::Result<()> {
        self.session.advance(until).map_err(|error| {
            // the alert is lost where the kernel does not take it at once
            let _ = self.poll_send(context);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }

    /// Reads once; 0 = the end.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.io.poll_read_ready(context))?;
        let Some(space) = self.session.space() else {
            let error = "a handshake message of more than 18 kB";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        };
        let mut space = ReadBuf::new(space);
        let result = Pin::new(&mut self.io).poll_read(context, &mut space);
        let count = space.filled().len();
        self.session.fill(count);
        result.map_ok(|()| count)
    }

    /// After the last plain byte: the buffer of a partial record is cut to its size, and its permit taken.
    fn rest(&mut self) -> io::Result<()> {
        self.session.shrink();
        let held = self.session.held() as u64;
        if self.is_paid || held == 0 {
            self.partial = None;
            return Ok(());
        }
        let paid = self.partial.as_ref().map_or(0, Permit::bytes);
        if paid < held {
            self.partial = None;
            self.partial = self.budget.head(held);
        }
        if self.partial.is_none() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    /// Sends the encrypted bytes; ready when the kernel has all of them.
    pub fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.pending().is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(context, self.session.pending()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.session.sent(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads plain bytes.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.session.readable() > 0 {
                let count = self.session.take(buffer.initialize_unfilled());
                buffer.advance(count);
                if !self.session.has_record() {
                    self.rest()?;
                }
                return Poll::Ready(Ok(()));
            }
            if self.session.has_ended() {
                return Poll::Ready(Ok(()));
            }
            if self.session.has_record() {
                self.advance(context, Until::Data)?;
                // a protocol answer to the client, such as a change of keys
                let _ = self.poll_send(context)?;
                continue;
            }
            match self.poll_fill(context)? {
                Poll::Pending => {
                    self.rest()?;
                    return Poll::Pending;
                }
                // an end without `close_notify` is accepted: HTTP messages state where they end
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => {}
            }
        }
    }

    /// Writes plain bytes, one record at a time.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_send(context))?;
            if self.session.is_claimed() {
                let written = self.session.written();
                let all: usize = pieces.iter().map(|piece| piece.len()).sum();
                return Poll::Ready(if written <= all {
                    Ok(written)
                } else {
                    Err(io::ErrorKind::InvalidInput.into())
                });
            }
            if pieces.iter().all(|piece| piece.is_empty()) {
                return Poll::Ready(Ok(0));
            }
            let most = if self.budget.plan().small {
                RECORD.0
            } else {
                RECORD.1
            };
            self.session
                .encrypt(pieces, most)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Closes the sending half: `close_notify`, then the socket's half.
    pub fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.session.close();
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
