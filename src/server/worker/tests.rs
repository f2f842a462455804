//! Compares what a worker's heap holds, as the allocator counts it, with what its permits pay for.

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::SystemTime,
};

use super::*;
use crate::{
    config::address::Listen,
    memory::prices::{CONNECTION, EXCHANGE, INPUT, SPARED},
    server::{
        admission::{Ask, admit},
        supervisor::Supervisor,
    },
    sys::alloc,
};

/// Clients of each attack: more than are admitted at a time.
const CROWD: usize = 150;

/// Bytes that no permit pays for: lists, queues and the runtime.
const UNPAID: i64 = 100_000;

/// The part of the price of a connection that is for this thread's heap; the rest is for the kernel.
const OF_CONNECTION: u64 = 1_400;
const OF_EXCHANGE: u64 = 14_000;

fn kernels_share(worker: &Worker) -> u64 {
    let (exchanges, _) = worker.budget.exchanges();
    worker.table.open() as u64 * (CONNECTION - OF_CONNECTION)
        + exchanges as u64 * (EXCHANGE - OF_EXCHANGE)
}

/// An upstream that misbehaves as the request's path says, with a thread for each connection.
fn nasty() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || misbehave(stream));
        }
    });
    address
}

fn misbehave(mut stream: TcpStream) -> Option<()> {
    let fields = format!("Set-Cookie: a={}\r\n", "x".repeat(440)).repeat(200);
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).ok()?;
    let head = String::from_utf8_lossy(buffer.get(..count)?).into_owned();
    let answer = match head.split(' ').nth(1)? {
        "/head" => format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok"),
        "/stop" => format!("HTTP/1.1 200 OK\r\n{fields}"),
        "/interim" => {
            let link = "x".repeat(60_000);
            format!("HTTP/1.1 103 Early Hints\r\nLink: {link}\r\n\r\n").repeat(9)
        }
        "/trailer" => {
            let trailer = "X-A: ".to_owned() + &"x".repeat(4_000);
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{trailer}")
        }
        "/long" => {
            "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n".to_owned() + &"x".repeat(900_000)
        }
        _ => String::new(),
    };
    stream.write_all(answer.as_bytes()).ok()?;
    // until the proxy closes
    while stream.read(&mut buffer).ok()? > 0 {}
    Some(())
}

/// What each client of an attack sends.
fn attacks() -> Vec<(&'static str, String)> {
    let long = "a".repeat(60_000);
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let chunked = "POST /never HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    vec![
        ("nothing at all", String::new()),
        ("response heads of 90 kB that are not read", get("/head")),
        ("response heads that stop", get("/stop")),
        ("103s of 60 kB", get("/interim")),
        ("trailers of an answer that stop", get("/trailer")),
        ("long answers that are not read", get("/long")),
        ("answers that do not come", get("/never")),
        ("paths of 60 kB", get(&format!("/never/{long}"))),
        (
            "hosts of 60 kB",
            format!("GET /never HTTP/1.1\r\nHost: {long}\r\n\r\n"),
        ),
        (
            "250 fields each",
            format!(
                "GET /never HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "a:\r\n".repeat(250)
            ),
        ),
        ("request heads that stop", format!("GET /never/{long}")),
        (
            "trailers of a request that stop",
            format!("{chunked}1\r\na\r\n0\r\nX-A: {}", "x".repeat(4_000)),
        ),
        ("chunks without an end", format!("{chunked}fffff\r\n{long}")),
        (
            "uploads that are not read",
            format!("POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n{long}"),
        ),
    ]
}

/// Runs the clients on a thread of its own until the test ends it.
fn crowd(address: SocketAddr, request: String) -> JoinHandle<Vec<TcpStream>> {
    let join = move |_| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_nonblocking(true).ok()?;
        // a proxy that refuses takes only a part of the request
        let _ = stream.write(request.as_bytes());
        Some(stream)
    };
    thread::spawn(move || (0..CROWD).filter_map(join).collect())
}

/// The most that the heap of a worker's thread holds beyond what its permits pay for, since the start of an attack.
async fn most_unpaid(upstream: SocketAddr, request: String) -> i64 {
    let yaml = format!(
        "routes: [{{path: /, target: 'http://{upstream}'}}]\n\
         transport: {{max_conns_per_host: 0}}\nproxy: {{max_concurrent_requests: 0, queue_timeout: 2}}\n"
    );
    let config = crate::config::tests::good(&yaml);
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let metrics = Arc::new(Metrics::default());
    let worker = Worker::new(config, Rc::clone(&budget), 400, metrics, SystemTime::now());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let supervisor = Supervisor::new();
    let reporter = supervisor.reporter(0);
    let _acceptor = Acceptor::new(
        &worker,
        &Listen::Everywhere(0),
        listener.into(),
        None,
        &reporter,
    )
    .unwrap();
    let pressure = Rc::new(Pressure::new(Rc::clone(&worker), None));
    reporter.spawn("timer", sweep(&worker, &pressure, None, 0));
    let before = alloc::live_bytes();
    let clients = crowd(address, request);
    let most = Cell::new(i64::MIN);
    let mut sampled = 0;
    while sampled < 150 || !clients.is_finished() {
        sleep(Duration::from_millis(1)).await;
        sampled += 1;
        let paid = i64::try_from(budget.spent() - kernels_share(&worker)).unwrap();
        most.set(most.get().max(alloc::live_bytes() - before - paid));
    }
    drop(clients.join());
    worker.table.close();
    while worker.table.open() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    drop(pressure);
    most.get()
}

/// A worker in ten megabytes that sends everything to this address.
fn worker_for(upstream: SocketAddr) -> Rc<Worker> {
    let yaml = format!("routes: [{{path: /, target: 'http://{upstream}'}}]\n");
    let config = crate::config::tests::good(&yaml);
    let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
    let metrics = Arc::new(Metrics::default());
    Worker::new(config, budget, 400, metrics, SystemTime::now())
}

#[test]
fn a_connection_that_ends_is_read_only_while_its_input_is_paid_for() {
    let end = async |is_short: bool| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let worker = worker_for(address);
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let pool = worker.budget.plan().pool.unwrap();
        let _all = is_short.then(|| worker.budget.force(pool));
        let slot = worker.table.slot(None);
        let stream = crate::net::Stream::client(stream, &worker.budget);
        let before = worker.budget.spent();
        let lingers = crate::server::closing::linger(&worker, stream, &slot, 1_000);
        let mut lingers = std::pin::pin!(lingers);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = lingers.as_mut().poll(&mut context);
        let paid = worker.budget.spent() - before;
        if polled.is_pending() {
            client.write_all(b"rest").unwrap();
            drop(client);
            lingers.await;
            assert_eq!(worker.budget.spent(), before);
        }
        (polled.is_ready(), paid)
    };
    let runtime = runtime().unwrap();
    assert_eq!(runtime.block_on(end(false)), (false, INPUT));
    assert_eq!(runtime.block_on(end(true)), (true, 0));
}

#[test]
fn uploads_without_memory_for_their_wait_are_few_in_the_line_of_the_reserve() {
    let runtime = runtime().unwrap();
    runtime.block_on(async {
        let worker = worker_for("127.0.0.1:9".parse().unwrap());
        let pool = worker.budget.plan().pool.unwrap();
        let _all = worker.budget.force(pool);
        // a large head may not even wait for memory; both places of the reserve are in use
        let ask = |has_body| Ask {
            size: 60_000,
            has_body,
            records: 0,
            is_brief: false,
        };
        let _places = [
            worker.reserve.take().unwrap(),
            worker.reserve.take().unwrap(),
        ];
        let slots: Vec<_> = (0..=SPARED + 1).map(|_| worker.table.slot(None)).collect();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut line = Vec::new();
        for (number, slot) in slots.iter().enumerate() {
            let is_last = number > SPARED;
            let gone = |_: &mut std::task::Context<'_>| std::task::Poll::Pending;
            let mut admitted = Box::pin(admit(&worker, slot, ask(!is_last), gone));
            let polled = admitted.as_mut().poll(&mut context);
            // one upload too many; a request without a body may stand there
            assert_eq!(polled.is_ready(), number == SPARED, "{number}");
            line.push(admitted);
        }
    });
}

#[test]
fn the_heap_never_holds_more_than_what_permits_say() {
    let upstream = nasty();
    for (what, request) in attacks() {
        let runtime = runtime().unwrap();
        let most = runtime.block_on(most_unpaid(upstream, request));
        assert!(most < UNPAID, "{what}: {most} bytes beyond the permits");
    }
}
