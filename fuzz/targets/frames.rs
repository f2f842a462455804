//! What reads frame headers before hyper does counts as a plain list of frames says, however the bytes are cut.
//!
//! The input's first twelve bytes choose the side, the bounds and how the others are cut. Each three bytes behind them are a
//! frame that comes, or something that happens between two frames: an exchange reads or gives up a body, frames are sent,
//! time passes.

#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lean_proxy::fuzzing::http2::frames::{
    Frames, PREFACE,
    bounds::{Bounds, Excess, above},
};
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

/// Bytes of one connection, so that an input is done within its time.
const MOST: usize = 128 * 1024;

/// Turns of the exchanges within which a pause ends, where the rest that can be in it is over at once.
const TURNS: usize = 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const KINDS: [u8; 8] = [DATA, HEADERS, CONTINUATION, 3, 4, 6, 8, 0x20];
const LENGTHS: [usize; 8] = [0, 1, 20, 65, 300, 1_000, 8_183, 16_384];

/// A frame without its payload.
#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Comes(Frame),
    Sent(Frame),
    /// A request is sent to the upstream.
    Asked(u32),
    Claimed,
    Took(u32, bool),
    GaveUp(u32),
    Passes(u32),
}

/// What a connection shows of itself, in order.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    PausedAt(usize),
    Claimed(Option<u32>),
    Worst(Option<u32>),
    Ended(Excess),
    Left(u32, bool, bool),
}

fuzz_target!(|input: &[u8]| {
    let (mut dice, rest) = Dice::new(input, 12);
    let is_client = dice.next() % 2 == 0;
    let bounds = Bounds {
        bodies: 1 + dice.next() % 8,
        pieces: 1 + dice.next() % 64,
        heads: 1 + dice.next() % 8,
        trailers: 1 + dice.next() % 2,
    };
    let steps: Vec<Step> = rest.chunks_exact(3).map(step).collect();
    let at_once = run(is_client, bounds, &steps, &|bytes| vec![bytes]);
    let in_pieces = run(is_client, bounds, &steps, &|bytes| dice.cut(bytes));
    assert_eq!(at_once, in_pieces);
});

fn step(bytes: &[u8]) -> Step {
    let [what, detail, number] = *bytes else {
        unreachable!("three bytes");
    };
    let stream = u32::from(number % 32);
    let frame = Frame {
        kind: KINDS[usize::from(what % 8)],
        // END_STREAM and END_HEADERS, one of them without a meaning, and the reserved bit of the stream
        flags: detail & 0b1101,
        stream: stream | u32::from(number & 0x80) << 24,
        len: LENGTHS[usize::from(detail >> 5)],
    };
    match what >> 4 {
        0..=9 => Step::Comes(frame),
        10 => Step::Sent(frame),
        11 => Step::Asked(stream),
        12 => Step::Claimed,
        13 => Step::Took(stream, detail % 4 > 0),
        14 => Step::GaveUp(stream),
        _ => Step::Passes(u32::from(detail) * 16),
    }
}

impl Frame {
    fn write(self) -> Vec<u8> {
        let mut bytes = (self.len as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        // looks like further headers
        bytes.resize(9 + self.len, 1);
        bytes
    }
}

fn run<'a>(
    is_client: bool,
    bounds: Bounds,
    steps: &[Step],
    cut: &dyn Fn(&[u8]) -> Vec<&[u8]>,
) -> Vec<Seen> {
    let frames = if is_client {
        Frames::of_client(bounds, 0)
    } else {
        Frames::of_upstream(bounds, 0)
    };
    let mut run = Run {
        frames,
        list: List::new(is_client, bounds),
        now: 0,
        passed: 0,
        seen: Vec::new(),
    };
    let preface = if is_client { PREFACE } else { &[] };
    let first = if is_client { &[] } else { PREFACE };
    for piece in cut(first) {
        run.frames.sent(piece);
    }
    let mut is_over = run.comes(preface, VecDeque::new(), cut).is_err();
    // frames that come one after the other come together
    let together =
        |one: &Step, next: &Step| matches!((one, next), (Step::Comes(_), Step::Comes(_)));
    for steps in steps.chunk_by(together) {
        is_over = is_over || run.passed > MOST || run.steps(steps, cut).is_err();
    }
    run.leave();
    run.seen
}

struct Run {
    frames: Frames,
    list: List,
    now: u32,
    /// Bytes that hyper was allowed to read.
    passed: usize,
    seen: Vec<Seen>,
}

impl Run {
    fn steps(&mut self, steps: &[Step], cut: &dyn Fn(&[u8]) -> Vec<&[u8]>) -> Result<(), ()> {
        let (mut bytes, mut frames) = (Vec::new(), VecDeque::new());
        for step in steps {
            if let Step::Comes(frame) = *step {
                frames.push_back((self.passed + bytes.len() + 9, frame));
                bytes.extend(frame.write());
            } else {
                self.step(*step, cut);
            }
        }
        self.comes(&bytes, frames, cut)
    }

    fn step(&mut self, step: Step, cut: &dyn Fn(&[u8]) -> Vec<&[u8]>) {
        match step {
            Step::Comes(_) => unreachable!("it is none of these"),
            Step::Sent(frame) => {
                let bytes = frame.write();
                let pieces = cut(&bytes);
                for (at, piece) in pieces.iter().enumerate() {
                    self.frames.sent(piece);
                    let is_last = at + 1 == pieces.len();
                    assert_eq!(self.frames.is_sent_whole(), is_last);
                }
                self.list.sent(frame);
            }
            Step::Asked(stream) => {
                if !self.list.is_client && !self.list.bodies.contains_key(&stream) {
                    self.frames.open(stream);
                    self.list.bodies.insert(stream, Body::default());
                }
            }
            Step::Claimed => {
                let claimed = self.frames.claim();
                assert_eq!(claimed, self.list.opened.take());
                self.seen.push(Seen::Claimed(claimed));
            }
            Step::Took(stream, is_data) => {
                self.frames.took(stream, is_data);
                self.list.took(stream, is_data);
            }
            Step::GaveUp(stream) => {
                self.frames.forget(stream);
                self.list.bodies.remove(&stream);
            }
            Step::Passes(time) => self.now = self.now.wrapping_add(time),
        }
    }

    /// Bytes come in; `frames` are those that are in them, and where the header of each ends.
    fn comes(
        &mut self,
        bytes: &[u8],
        mut frames: VecDeque<(usize, Frame)>,
        cut: &dyn Fn(&[u8]) -> Vec<&[u8]>,
    ) -> Result<(), ()> {
        for piece in cut(bytes) {
            let mut rest = piece;
            while !rest.is_empty() {
                let result = self.frames.pass(rest, self.now);
                let count = result.unwrap_or(rest.len());
                assert!((1..=rest.len()).contains(&count), "some of it, no more");
                let mut ours = Ok(());
                while let Some((position, frame)) = frames.front().copied()
                    && position <= self.passed + count
                    && ours.is_ok()
                {
                    frames.pop_front();
                    ours = self.list.begins(frame, position, self.now);
                }
                assert_eq!(result.map(|_| ()), ours);
                if let Err(excess) = result {
                    self.seen.push(Seen::Ended(excess));
                    return Err(());
                }
                self.passed += count;
                rest = &rest[count..];
                self.turns();
            }
        }
        Ok(())
    }

    /// Exchanges have their turns until the connection is read on.
    fn turns(&mut self) {
        if !self.frames.is_paused() {
            return;
        }
        self.seen.push(Seen::PausedAt(self.passed));
        self.seen.push(Seen::Worst(self.frames.worst()));
        for turn in 0.. {
            assert!(turn <= TURNS, "it pauses for ever");
            if self.frames.rests() {
                self.frames.rested();
            }
            self.frames.resume();
            if !self.frames.is_paused() {
                break;
            }
        }
    }

    /// Where no body is left, nothing is counted any more.
    fn leave(&mut self) {
        let (highest, is_worn) = (self.frames.highest(), self.frames.is_worn());
        let is_paused = self.frames.is_paused();
        assert_eq!(highest, self.list.highest);
        assert_eq!(is_worn, self.list.heads.len() > self.list.bounds.heads);
        self.seen.push(Seen::Left(highest, is_worn, is_paused));
        for stream in 0..32 {
            self.frames.forget(stream);
        }
        self.frames.resume();
        assert!(!self.frames.is_paused() && !self.frames.rests());
    }
}

/// The same, from the frames themselves and with nothing counted in advance.
struct List {
    is_client: bool,
    bounds: Bounds,
    highest: u32,
    opened: Option<u32>,
    bodies: BTreeMap<u32, Body>,
    /// Buffers with heads.
    heads: BTreeSet<usize>,
    block: usize,
    is_trailers: bool,
    allowance: u64,
    at: u32,
}

#[derive(Default)]
struct Body {
    /// The buffers of the frames that were not read.
    frames: VecDeque<usize>,
    has_head: bool,
    has_trailers: bool,
}

impl List {
    fn new(is_client: bool, bounds: Bounds) -> List {
        List {
            is_client,
            bounds,
            highest: 0,
            opened: None,
            bodies: BTreeMap::new(),
            heads: BTreeSet::new(),
            block: 0,
            is_trailers: false,
            allowance: 1_000,
            at: 0,
        }
    }

    fn begins(&mut self, frame: Frame, position: usize, now: u32) -> Result<(), Excess> {
        let stream = frame.stream & 0x7fff_ffff;
        let buffer = position / 8_192;
        match frame.kind {
            DATA => {
                if let Some(body) = self.bodies.get_mut(&stream).filter(|_| frame.len > 0) {
                    body.frames.push_back(buffer);
                    return self.check();
                }
            }
            HEADERS | CONTINUATION => {
                if frame.kind == HEADERS {
                    self.block = 0;
                    self.is_trailers = self.head(stream, frame.flags & 1 > 0);
                }
                self.block += frame.len;
                self.heads.insert(buffer);
                if self.heads.len() > self.bounds.heads + self.bounds.heads / 2 {
                    return Err(Excess("heads in too many buffers"));
                }
                let are_counted = self.is_trailers && self.block > 64;
                if let Some(body) = self.bodies.get_mut(&stream).filter(|_| are_counted) {
                    body.has_trailers = true;
                    return self.check();
                }
            }
            _ => return self.control(1 + frame.len as u64 / 256, now),
        }
        Ok(())
    }

    /// Whether the head that begins is a trailer section.
    fn head(&mut self, stream: u32, ends: bool) -> bool {
        if !self.is_client {
            let body = self.bodies.get_mut(&stream);
            return body.is_some_and(|it| std::mem::replace(&mut it.has_head, true) && ends);
        }
        if stream <= self.highest {
            return true;
        }
        self.highest = stream;
        if let Some(refused) = self.opened.take() {
            self.bodies.remove(&refused);
        }
        if !ends {
            self.bodies.insert(stream, Body::default());
            self.opened = Some(stream);
        }
        false
    }

    fn control(&mut self, count: u64, now: u32) -> Result<(), Excess> {
        let more = u64::from(now.wrapping_sub(self.at)) * 200 / 1_000;
        if more > 0 {
            self.allowance = 1_000.min(self.allowance + more);
            self.at = now;
        }
        let left = self.allowance.checked_sub(count);
        self.allowance = left.ok_or(Excess("too many frames of control"))?;
        Ok(())
    }

    fn sent(&mut self, frame: Frame) {
        if matches!(frame.kind, DATA | HEADERS) {
            let more = 4 + frame.len as u64 / 2_048;
            self.allowance = 1_000.min(self.allowance + more);
        }
    }

    fn took(&mut self, stream: u32, is_data: bool) {
        if let Some(body) = self.bodies.get_mut(&stream) {
            if is_data {
                body.frames.pop_front();
            } else {
                body.has_trailers = false;
            }
        }
    }

    fn buffers(&self) -> usize {
        let all = self.bodies.values().flat_map(|it| it.frames.iter());
        all.collect::<BTreeSet<_>>().len()
    }

    fn frames(&self) -> usize {
        self.bodies.values().map(|it| it.frames.len()).sum()
    }

    fn check(&self) -> Result<(), Excess> {
        let trailers = self.bodies.values().filter(|it| it.has_trailers).count();
        if trailers > 2 * self.bounds.trailers {
            Err(Excess("too many trailers"))
        } else if self.buffers() > above(self.bounds.bodies)
            || self.frames() > above(self.bounds.pieces)
        {
            Err(Excess("too many small pieces of bodies"))
        } else {
            Ok(())
        }
    }
}
