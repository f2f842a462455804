//! Addresses of upstream names, asked at a dial and kept for seconds.

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
    /// Look-ups of a worker at the same time, whatever was reloaded: a resolver that hangs would hold a thread, of some
    /// 30 kB, for each name.
    pub static LOOK_UPS: Arc<Semaphore> = Arc::new(Semaphore::new(4));
}
/// Takes a name's addresses out of the cache when it is dropped, unless they proved good.
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

/// Why a look-up has no answer.
#[derive(Debug)]
pub struct Unresolved {
    pub reason: String,
    /// There was no thread for it: it says nothing of the name, and the next dial asks again at once.
    pub ours: bool,
}

/// What is known of names: one entry for each name of the configuration.
pub struct Names {
    pub entries: RefCell<HashMap<String, Rc<RefCell<CachedName>>>>,
    look_up: fn(String) -> LookUp,
}

pub enum CachedName {
    Asking(Vec<Waker>),
    /// An answer, and how long it is good.
    Known(Answer, Instant),
}

/// A look-up at work: its entry gets an answer whatever becomes of it, else the name would be asked for for ever.
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

    /// The addresses of a name, with port 0, and whether they were asked for just now.
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

    /// Starts a look-up in a task of its own, so that it outlives whoever waits for it.
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

    /// Forgets these addresses, but not newer ones that somebody else has asked for meanwhile.
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

/// getaddrinfo, in a thread of its own. Not by tokio's blocking pool, which panics where the system has no thread.
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

/// Bytes of stack of a look-up; musl's resolver takes a few kB, glibc's with its modules more.
pub const LOOK_UP_STACK: usize = 128 * 1024;

/// What is said of a look-up that ended without an answer.
pub const ENDED: &str = "the look-up broke off";

/// A burst of dials asks once; a container that moved is followed soon, and at once where its old address is dead.
pub const GOOD_FOR: Duration = Duration::from_secs(5);

/// Keeps a name that does not exist from being asked for with each request.
pub const BAD_FOR: Duration = Duration::from_secs(1);
