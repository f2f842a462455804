use super::{bounds::above, *};

const BOUNDS: Bounds = Bounds {
    bodies: 4,
    pieces: 100,
    heads: 8,
    trailers: 1,
};

fn frame(kind: u8, flags: u8, stream: u32, len: usize) -> Vec<u8> {
    let mut bytes = u32::try_from(len).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.resize(9 + len, 0);
    bytes
}

fn request(stream: u32, len: usize) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, len)
}

fn upload(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, 20)
}

/// Connections behind their preface.
fn begun() -> Frames {
    let mut frames = Frames::of_client(BOUNDS, 0);
    assert_eq!(frames.pass(PREFACE, 0).unwrap(), PREFACE.len());
    frames
}

/// Lets all of it pass, as hyper would take it.
fn pass(frames: &mut Frames, bytes: &[u8], now: u32) -> Result<usize, Excess> {
    let (mut at, mut pauses) = (0, 0);
    while at < bytes.len() {
        at += frames.pass(&bytes[at..], now)?;
        pauses += usize::from(frames.is_paused());
        while frames.is_paused() {
            frames.rested();
            frames.resume();
        }
    }
    Ok(pauses)
}

#[test]
fn the_bytes_are_the_same_however_they_are_cut() {
    let stream = [
        PREFACE,
        &request(1, 30),
        &upload(3),
        &frame(kind::DATA, 0, 3, 300),
    ]
    .concat();
    for size in 1..stream.len() {
        let mut frames = Frames::of_client(BOUNDS, 0);
        for piece in stream.chunks(size) {
            pass(&mut frames, piece, 0).unwrap();
        }
        assert_eq!((frames.highest(), frames.claim()), (3, Some(3)), "{size}");
        assert_eq!(frames.position, stream.len() as u64, "{size}");
    }
}

#[test]
fn the_highest_bit_of_a_stream_has_no_meaning() {
    let mut frames = begun();
    pass(&mut frames, &upload(3 | 1 << 31), 0).unwrap();
    assert_eq!((frames.highest(), frames.claim()), (3, Some(3)));
}

#[test]
fn a_request_that_no_exchange_takes_over_is_forgotten() {
    let mut frames = begun();
    let data = |stream| frame(kind::DATA, 0, stream, 10);
    let bytes = [upload(1), upload(3), data(1), data(3)].concat();
    pass(&mut frames, &bytes, 0).unwrap();
    assert_eq!((frames.claim(), frames.unread.pieces), (Some(3), 1));
}

#[test]
fn a_request_with_a_body_is_taken_over_before_more_is_read() {
    let mut frames = begun();
    let first = upload(1);
    let bytes = [first.clone(), frame(kind::DATA, 0, 1, 10)].concat();
    let passed = frames.pass(&bytes, 0).unwrap();
    assert_eq!((passed, frames.is_paused()), (first.len(), true));
    frames.resume();
    assert_eq!(frames.claim(), Some(1));
    assert_eq!(frames.claim(), None, "once");
    // small ones without are read together, large ones each for itself
    let small = [request(3, 50), request(5, 50)].concat();
    assert_eq!(pass(&mut frames, &small, 0), Ok(0));
    let large = [request(7, 1_000), request(9, 1_000)].concat();
    assert_eq!(pass(&mut frames, &large, 0), Ok(2));
}

#[test]
fn control_is_bounded_by_the_second_and_by_what_was_sent() {
    let ping = frame(6, 0, 0, 8);
    let mut frames = begun();
    assert!(pass(&mut frames, &ping.repeat(BURST as usize), 0).is_ok());
    assert!(pass(&mut frames, &ping, 0).is_err());
    let mut frames = begun();
    pass(&mut frames, &ping.repeat(BURST as usize), 0).unwrap();
    let second = PER_SECOND as usize;
    assert!(pass(&mut frames, &ping.repeat(second), 1_000).is_ok());
    assert!(pass(&mut frames, &ping, 1_000).is_err());
    // an hour of silence allows one burst
    let mut frames = begun();
    let hour = 3_600_000;
    assert!(pass(&mut frames, &ping.repeat(BURST as usize), hour).is_ok());
    assert!(pass(&mut frames, &ping, hour).is_err());
    let mut frames = begun();
    pass(&mut frames, &ping.repeat(BURST as usize), 0).unwrap();
    frames.sent(&frame(kind::DATA, 0, 1, 100));
    assert!(pass(&mut frames, &ping.repeat(PER_SENT as usize), 0).is_ok());
    // control that was sent allows none
    frames.sent(&frame(8, 0, 0, 4));
    assert!(pass(&mut frames, &ping, 0).is_err());
    // large ones count for more
    let mut frames = begun();
    let unknown = frame(0x20, 0, 0, 16_000);
    let many = BURST as usize / (1 + 16_000 / CONTROL as usize);
    assert!(pass(&mut frames, &unknown.repeat(many), 0).is_ok());
    assert!(pass(&mut frames, &unknown.repeat(2), 0).is_err());
}

#[test]
fn what_is_sent_to_an_upstream_allows_answers_behind_the_preface_however_it_is_cut() {
    let ping = frame(6, 0, 0, 8);
    let data = frame(kind::DATA, 0, 1, 100);
    for cut in 0..=PREFACE.len() {
        let mut frames = Frames::of_upstream(BOUNDS, 0);
        pass(&mut frames, &ping.repeat(BURST as usize), 0).unwrap();
        frames.sent(&PREFACE[..cut]);
        frames.sent(&[&PREFACE[cut..], &data].concat());
        assert!(pass(&mut frames, &ping.repeat(PER_SENT as usize), 0).is_ok());
        assert!(pass(&mut frames, &ping, 0).is_err(), "{cut}");
    }
}

#[test]
fn an_other_side_may_report_every_four_kilobytes_that_it_has_read() {
    let update = frame(8, 0, 1, 4);
    let mut frames = begun();
    for _ in 0..10_000 {
        frames.sent(&frame(kind::DATA, 0, 1, 16 * 1024));
        assert!(pass(&mut frames, &update.repeat(8), 0).is_ok());
    }
}

#[test]
fn trailers_are_taken_before_more_is_read() {
    let mut frames = Frames::of_upstream(BOUNDS, 0);
    for stream in [1, 3, 5, 7] {
        frames.open(stream);
        pass(
            &mut frames,
            &frame(kind::HEADERS, END_HEADERS, stream, 20),
            0,
        )
        .unwrap();
    }
    let ends =
        [1, 3, 5, 7].map(|stream| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, 100));
    let bytes = ends.concat();
    let mut at = 0;
    for stream in [1, 3, 5, 7] {
        at += frames.pass(&bytes[at..], 0).unwrap();
        assert!(frames.is_paused(), "{stream}");
        frames.took(stream, false);
        frames.resume();
        assert!(!frames.is_paused(), "{stream}");
    }
    assert_eq!((at, frames.worst()), (bytes.len(), None));
}

#[test]
fn pieces_of_a_body_that_stand_far_apart_cost_their_stream() {
    let mut frames = begun();
    pass(&mut frames, &upload(1), 0).unwrap();
    assert_eq!(frames.claim(), Some(1));
    // close together they are few buffers, however many they are
    pass(&mut frames, &frame(kind::DATA, 0, 1, 256).repeat(60), 0).unwrap();
    assert_eq!(frames.worst(), None);
    let far = [frame(kind::DATA, 0, 1, 256), frame(0x20, 0, 0, 8_000)].concat();
    pass(&mut frames, &far.repeat(4), 0).unwrap();
    assert_eq!(frames.worst(), Some(1));
    assert_eq!(frames.worst(), None, "said once");
    frames.forget(1);
    assert_eq!(frames.unread.pieces, 0);
    // one that takes what comes is not disturbed
    pass(&mut frames, &upload(3), 0).unwrap();
    assert_eq!(frames.claim(), Some(3));
    for _ in 0..9 {
        pass(&mut frames, &frame(kind::DATA, 0, 3, 256), 0).unwrap();
        pass(&mut frames, &frame(kind::DATA, 0, 5, 8_000), 0).unwrap();
        frames.took(3, true);
    }
    assert_eq!(frames.worst(), None);
    // and one that is not stopped ends the connection
    let far = [frame(kind::DATA, 0, 3, 256), frame(kind::DATA, 0, 5, 8_000)].concat();
    assert!(pass(&mut frames, &far.repeat(9), 0).is_err());
}

#[test]
fn nothing_more_is_read_until_a_stream_that_keeps_too_much_is_reset() {
    let mut frames = begun();
    pass(&mut frames, &upload(1), 0).unwrap();
    assert_eq!(frames.claim(), Some(1));
    let data = frame(kind::DATA, 0, 1, 256);
    let far = [data.clone(), frame(0x20, 0, 0, 8_000)].concat();
    let passed = frames.pass(&far.repeat(9), 0).unwrap();
    assert_eq!(passed, BOUNDS.bodies * far.len() + data.len());
    assert!(frames.is_paused());
}

#[test]
fn heads_in_many_buffers_wear_a_connection_out() {
    let mut frames = begun();
    let far = |stream| [request(stream, 50), frame(kind::DATA, 0, 99, 8_192)].concat();
    for stream in 0..8 {
        pass(&mut frames, &far(2 * stream + 1), 0).unwrap();
        assert!(!frames.is_worn(), "{stream}");
    }
    pass(&mut frames, &far(17), 0).unwrap();
    assert!(frames.is_worn());
    for stream in [19, 21, 23] {
        pass(&mut frames, &far(stream), 0).unwrap();
    }
    assert!(
        pass(&mut frames, &far(25), 0).is_err(),
        "the client got a GOAWAY"
    );
    let mut frames = begun();
    for stream in 0..200 {
        pass(&mut frames, &request(2 * stream + 1, 50), 0).unwrap();
    }
    assert!(!frames.is_worn(), "many in few buffers");
}

#[test]
fn trailers_that_are_not_taken_are_few() {
    let mut frames = begun();
    let trailers = |stream, len| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, len);
    for stream in [1, 3, 5, 7] {
        pass(&mut frames, &upload(stream), 0).unwrap();
        assert_eq!(frames.claim(), Some(stream));
    }
    pass(&mut frames, &trailers(1, 60), 0).unwrap();
    pass(&mut frames, &trailers(3, 600), 0).unwrap();
    assert_eq!(frames.worst(), None, "a small one, and one that is allowed");
    pass(&mut frames, &trailers(5, 600), 0).unwrap();
    assert_eq!(frames.worst(), Some(5));
    assert!(pass(&mut frames, &trailers(7, 600), 0).is_err());
    let mut frames = begun();
    for stream in 0..20 {
        let stream = 2 * stream + 1;
        pass(&mut frames, &upload(stream), 0).unwrap();
        assert_eq!(frames.claim(), Some(stream));
        // in two frames they are no smaller
        pass(
            &mut frames,
            &frame(kind::HEADERS, END_STREAM, stream, 10),
            0,
        )
        .unwrap();
        let rest = frame(kind::CONTINUATION, END_HEADERS, stream, 600);
        pass(&mut frames, &rest, 0).unwrap();
        assert_eq!(frames.unread.trailers_waiting(), 1);
        frames.took(stream, false);
    }
    assert_eq!(frames.worst(), None, "they are taken");
}

#[test]
fn another_frame_may_follow_only_behind_a_whole_one() {
    let mut frames = begun();
    assert!(frames.is_sent_whole());
    let data = frame(kind::DATA, 0, 1, 100);
    for cut in 1..data.len() {
        frames.sent(&data[..cut]);
        assert!(!frames.is_sent_whole(), "{cut}");
        frames.sent(&data[cut..]);
        assert!(frames.is_sent_whole(), "{cut}");
    }
}

#[test]
fn many_small_frames_wait_for_their_exchanges_and_cost_the_worst_stream() {
    let mut frames = begun();
    for stream in [1, 3] {
        pass(&mut frames, &upload(stream), 0).unwrap();
        assert_eq!(frames.claim(), Some(stream));
    }
    let small = |stream| frame(kind::DATA, 0, stream, 1);
    let turn = UNTAKEN_DATA as usize * small(1).len();
    assert_eq!(frames.pass(&small(1).repeat(50), 0), Ok(turn));
    assert!(frames.is_paused());
    frames.resume();
    // an empty frame is no piece
    pass(&mut frames, &frame(kind::DATA, 0, 3, 0).repeat(40), 0).unwrap();
    pass(&mut frames, &small(3).repeat(18), 0).unwrap();
    assert!(!frames.is_paused(), "50 wait, of 100");
    // from here on one for each that is taken, or for each few turns in which none is
    for _ in 0..5 {
        assert_eq!(frames.pass(&small(3).repeat(9), 0), Ok(small(3).len()));
        frames.took(3, true);
        frames.resume();
        assert!(!frames.is_paused());
    }
    for _ in 0..50 {
        assert_eq!(frames.pass(&small(3).repeat(9), 0), Ok(small(3).len()));
        assert_eq!(frames.worst(), None);
        for _ in 0..TURNS {
            assert!(frames.is_paused() && !frames.rests());
            frames.resume();
        }
    }
    frames.pass(&small(3), 0).unwrap();
    assert_eq!(frames.worst(), Some(3), "69 of 101");
    for _ in 0..2 * TURNS {
        frames.resume();
        assert!(frames.is_paused(), "its exchange has time to end");
    }
    assert!(frames.rests());
    frames.forget(3);
    frames.resume();
    assert!(!frames.is_paused());
    assert_eq!(frames.unread.pieces, 32);
    // and a stream that is not stopped ends the connection
    let more = above(BOUNDS.pieces) - 32;
    pass(&mut frames, &small(1).repeat(more), 0).unwrap();
    assert!(pass(&mut frames, &small(1), 0).is_err());
}

#[test]
fn answers_of_an_upstream_are_bounded_like_requests() {
    let mut frames = Frames::of_upstream(BOUNDS, 0);
    for stream in [1, 3, 5, 7] {
        frames.open(stream);
    }
    // an interim head, the head, and trailers
    let head = |stream, flags, len| frame(kind::HEADERS, flags | END_HEADERS, stream, len);
    for stream in [1, 1, 7, 7] {
        pass(&mut frames, &head(stream, 0, 100), 0).unwrap();
    }
    pass(&mut frames, &head(3, END_STREAM, 100), 0).unwrap();
    assert_eq!(frames.worst(), None);
    pass(&mut frames, &head(1, END_STREAM, 100), 0).unwrap();
    assert_eq!(frames.worst(), None, "one may wait");
    pass(&mut frames, &head(5, 0, 100), 0).unwrap();
    pass(&mut frames, &head(5, END_STREAM, 100), 0).unwrap();
    assert_eq!(frames.worst(), Some(5));
    // pieces far apart
    let far = [frame(kind::DATA, 0, 7, 256), frame(0x20, 0, 0, 8_000)].concat();
    pass(&mut frames, &far.repeat(5), 0).unwrap();
    assert_eq!(frames.worst(), Some(7));
    frames.forget(7);
    assert_eq!(
        pass(&mut frames, &far.repeat(5), 0),
        Ok(0),
        "not waited for"
    );
    // control frames
    let ping = frame(6, 0, 0, 8);
    assert!(pass(&mut frames, &ping.repeat(BURST as usize), 0).is_err());
}
