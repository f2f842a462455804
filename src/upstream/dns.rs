//! Addresses of upstream names: resolved at a dial by the system's resolver in a thread, and cached for seconds.
//!
//! Concurrent dials to one name share a look-up, and a look-up outlives the dial that began it. The cache has one entry for
//! each name in the configuration. A look-up has no time-out: the dial's applies.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    net::{SocketAddr, ToSocketAddrs as _},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_local,
};

use crate::failure::Failure;

thread_local! {
    /// Bounds a worker's concurrent look-ups, also across reloads: if the resolver hangs, each holds a thread of some 30 kB.
    pub static LOOK_UPS: Arc<Semaphore> = Arc::new(Semaphore::new(4));
}
/// Removes a name's addresses from the cache on drop, unless `cleared` says that one of them answered.
pub struct Doubt<'a> {
    pub names: &'a Names,
    pub host: &'a str,
    pub known: &'a Rc<[SocketAddr]>,
    pub cleared: Cell<bool>,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.cleared.get() {
            self.names.forget(self.host, self.known);
        }
    }
}

pub type Answer = Result<Rc<[SocketAddr]>, Rc<str>>;

pub type LookUp = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, Unresolved>>>>;

/// Why a look-up failed.
#[derive(Debug)]
pub struct Unresolved {
    pub reason: String,
    /// This process could not do it, for lack of a thread: nothing is known about the name, and the next dial tries again.
    pub ours: bool,
}

/// The cache: one entry for each name in the configuration.
pub struct Names {
    pub entries: RefCell<HashMap<String, Rc<RefCell<CachedName>>>>,
    look_up: fn(String) -> LookUp,
}

pub enum CachedName {
    Asking(Vec<Waker>),
    /// An answer, and when it expires.
    Known(Answer, Instant),
}

/// A running look-up. If it ends early, its entry gets an error on drop: otherwise all later dials would wait for it.
pub struct Asked(Rc<RefCell<CachedName>>);

impl Asked {
    fn answer(&self, answer: Answer, good_for: Duration) {
        let asking = self
            .0
            .replace(CachedName::Known(answer, Instant::now() + good_for));
        if let CachedName::Asking(wakers) = asking {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let is_asking = matches!(*self.0.borrow(), CachedName::Asking(_));
        if is_asking {
            self.answer(Err(ENDED.into()), Duration::ZERO);
        }
    }
}

impl Names {
    pub fn new(look_up: fn(String) -> LookUp) -> Names {
        Names {
            entries: RefCell::default(),
            look_up,
        }
    }

    /// The addresses of a name, with port 0, and whether they come from a look-up and not from the cache.
    pub async fn find(&self, name: &str) -> Result<(Rc<[SocketAddr]>, bool), Failure> {
        let known = self.entries.borrow().get(name).map(Rc::clone);
        let known = known.filter(|entry| entry.borrow().is_valid());
        let fresh = known
            .as_ref()
            .is_none_or(|entry| matches!(*entry.borrow(), CachedName::Asking(_)));
        let entry = known.unwrap_or_else(|| self.ask(name));
        let answer = poll_fn(|cx| entry.borrow_mut().poll(cx)).await;
        answer
            .map(|addresses| (addresses, fresh))
            .map_err(|reason| Failure::NameUnresolved(format!("{name}: {reason}")))
    }

    /// Starts a look-up in a task of its own, so that it outlives the dials that wait for it.
    fn ask(&self, name: &str) -> Rc<RefCell<CachedName>> {
        let entry = Rc::new(RefCell::new(CachedName::Asking(Vec::new())));
        self.entries
            .borrow_mut()
            .insert(name.to_owned(), Rc::clone(&entry));
        let (look_up, asked) = ((self.look_up)(name.to_owned()), Asked(Rc::clone(&entry)));
        spawn_local(async move {
            match look_up.await {
                Ok(addresses) if addresses.is_empty() => {
                    asked.answer(Err("no address".into()), BAD_FOR);
                }
                Ok(addresses) => asked.answer(Ok(addresses.into()), GOOD_FOR),
                Err(error) if error.ours => asked.answer(Err(error.reason.into()), Duration::ZERO),
                Err(error) => asked.answer(Err(error.reason.into()), BAD_FOR),
            }
        });
        entry
    }

    /// Removes these addresses, but not newer ones that another dial has resolved meanwhile.
    pub fn forget(&self, name: &str, addresses: &Rc<[SocketAddr]>) {
        let mut entries = self.entries.borrow_mut();
        let theirs = entries
            .get(name)
            .is_some_and(|entry| match &*entry.borrow() {
                CachedName::Known(Ok(known), _) => Rc::ptr_eq(known, addresses),
                _ => false,
            });
        if theirs {
            entries.remove(name);
        }
    }
}

impl CachedName {
    fn is_valid(&self) -> bool {
        match self {
            CachedName::Asking(_) => true,
            CachedName::Known(_, until) => Instant::now() < *until,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        match self {
            CachedName::Known(answer, _) => Poll::Ready(answer.clone()),
            CachedName::Asking(wakers) => {
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// Calls getaddrinfo in a thread of its own. tokio's blocking pool would panic where no thread can be started.
pub async fn resolve(name: String, stack: usize) -> Result<Vec<SocketAddr>, Unresolved> {
    let ours = |reason: String| Unresolved { reason, ours: true };
    let permit = LOOK_UPS.with(Arc::clone).acquire_owned().await;
    let permit = permit.map_err(|error| ours(error.to_string()))?;
    let (answer, answered) = oneshot::channel();
    let look_up = move || {
        let addresses = (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter);
        drop(permit);
        drop(answer.send(addresses));
    };
    thread::Builder::new()
        .name("look-up".to_owned())
        .stack_size(stack)
        .spawn(look_up)
        .map_err(|error| ours(format!("no thread for the look-up: {error}")))?;
    let addresses = answered.await.map_err(|_| ours(ENDED.to_owned()))?;
    addresses.map_err(|error| Unresolved {
        reason: error.to_string(),
        ours: false,
    })
}

/// Bytes of stack of a look-up's thread; musl's resolver uses a few kB, glibc's with its modules more.
pub const LOOK_UP_STACK: usize = 128 * 1024;

/// The reason given for a look-up whose thread or task ended without an answer.
pub const ENDED: &str = "the look-up broke off";

/// How long addresses are cached: a burst of dials resolves once, and a container that moved is found within seconds, or
/// at once where its old address does not answer.
pub const GOOD_FOR: Duration = Duration::from_secs(5);

/// How long a failure is cached, so that a name that does not exist is not resolved for each request.
pub const BAD_FOR: Duration = Duration::from_secs(1);
