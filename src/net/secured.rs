//! A client's connection with TLS: a plain one, and the session on it.
//!
//! A write counts only when the kernel has its whole record. So a caller that is told `Pending` must come again with the
//! same bytes (and may bring more behind them), as all of ours do, and nothing of an answer is left here at its end.

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
use crate::memory::budget::{Budget, Permit, TLS_CLIENT};

/// A connection with TLS.
#[derive(Debug)]
pub struct Secured {
    /// The connection below: TCP or a unix socket.
    io: Stream,
    session: Session,
    budget: Rc<Budget>,
    /// What the session costs at rest.
    _permit: Permit,
    /// What pays for part of a record that came between two requests.
    partial: Option<Permit>,
    /// An exchange pays for the records.
    is_paid: bool,
    /// Whom the client's certificate names.
    subject: Option<Rc<str>>,
}

/// Bytes of plain text in one record, where memory is small and where it is not.
const RECORD: (usize, usize) = (4 * 1024, 16 * 1024);

impl Secured {
    /// A connection on which nothing was read.
    ///
    /// # Errors
    /// A configuration that rustls does not take.
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

    /// The connection below.
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

    /// Takes over whom the client's certificate names.
    pub fn set_subject(&mut self, subject: &str) {
        self.subject = Some(subject.into());
    }

    /// Whether an exchange, or a handshake, pays for the records that are held from now on.
    pub fn set_paid(&mut self, is_paid: bool) {
        self.is_paid = is_paid;
        if is_paid {
            self.partial = None;
        }
    }

    /// Whether bytes of a record are held that is not whole.
    pub fn is_amid_record(&self) -> bool {
        self.session.held() > 0
    }

    /// Reads what is there, once, and answers it: a step of the handshake. Ready where something came.
    ///
    /// # Errors
    /// Those of the socket, the end of the connection among them; `InvalidData` where the client cannot be agreed with.
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

    /// Like [`Stream::poll_peek`]; what is seen may be a record without data.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_peek(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.session.readable() > 0 || self.session.has_record() {
            return Poll::Ready(Ok(1));
        }
        self.io.poll_peek(context)
    }

    /// Sends `close_notify` as far as the kernel takes it at once: behind the last answer of a connection, whose close is
    /// then no truncation. Not where an answer was cut short.
    pub fn say_goodbye(&mut self, context: &mut Context<'_>) {
        if self.session.pending().is_empty() && !self.session.is_handshaking() {
            self.session.close();
            let _ = self.poll_send(context);
        }
    }

    fn advance(&mut self, context: &mut Context<'_>, until: Until) -> io::Result<()> {
        self.session.advance(until).map_err(|error| {
            // the alert; where the kernel does not take it at once it is lost
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

    /// Nothing more is here: what is left of a record keeps exactly its bytes, and pays for them.
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

    /// Sends what is encrypted; ready when the kernel has all of it.
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
                // what the client is answered beside data: a change of keys
                let _ = self.poll_send(context)?;
                continue;
            }
            match self.poll_fill(context)? {
                Poll::Pending => {
                    self.rest()?;
                    return Poll::Pending;
                }
                // without `close_notify`: what is read here says itself where it ends
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

    /// Ends this side: `close_notify`, then the socket's own half.
    pub fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.session.close();
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
