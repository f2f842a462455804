#!/usr/bin/env python3
"""gRPC without generated code: messages are bytes.

rpc.py serve [KEY CERTIFICATE]        a server on port 9000, and with TLS on port 9443
rpc.py call TARGET SERVICE [ROOT]     calls it through the proxy; prints a line for each case, and fails with the first
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

WAIT = 60
MESSAGE = b"x" * 200_000
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
cancelled = threading.Event()


def same(message: bytes) -> bytes:
    """Messages are not serialized."""
    return message


def echo(message: bytes, context: Any) -> bytes:
    """The message, and the caller's field in both kinds of metadata."""
    value = dict(context.invocation_metadata()).get("x-field", "")
    context.send_initial_metadata((("x-field", value),))
    context.set_trailing_metadata((("x-field", value), ("x-field-bin", b"\0\xff")))
    return message


def hold(_: bytes, context: Any) -> bytes:
    """Waits until the call is over."""
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(WAIT)
    cancelled.set()
    return b""


def was_cancelled(_: bytes, __: Any) -> bytes:
    """Whether a held call has ended; waits for it."""
    return b"yes" if cancelled.wait(WAIT) else b"no"


def refuse(_: bytes, context: Any) -> None:
    context.abort(grpc.StatusCode.NOT_FOUND, "no such th\u00efng")


def count(size: bytes, _: Any) -> Iterator[bytes]:
    """As many large messages."""
    for _number in range(int(size)):
        yield MESSAGE


def collect(messages: Iterator[bytes], _: Any) -> bytes:
    return str(sum(map(len, messages))).encode()


def chat(messages: Iterator[bytes], _: Any) -> Iterator[bytes]:
    yield from messages


def serve(pair: list[str]) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(150), options=UNLIMITED)
    unary, down = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    up, both = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    calls: list[tuple[Any, Any]] = [(unary, f) for f in (echo, hold, was_cancelled, refuse)]
    calls += [(down, count), (up, collect), (both, chat)]
    handlers = {f.__name__: kind(f, same, same) for kind, f in calls}
    for service in ("plain.Calls", "secure.Calls"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port("[::]:9000")
    if pair:
        key, certificate = (Path(file).read_bytes() for file in pair)
        server.add_secure_port("[::]:9443", grpc.ssl_server_credentials(((key, certificate),)))
    server.start()
    server.wait_for_termination()


class Caller:
    """Each public method is a case."""

    def __init__(self, target: str, service: str, root: str) -> None:
        options = [*UNLIMITED, ("grpc.ssl_target_name_override", "proxy.example")]
        if root:
            trust = grpc.ssl_channel_credentials(Path(root).read_bytes())
            self._channel = grpc.secure_channel(target, trust, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._service = service

    def _call(self, kind: str, name: str) -> Any:
        return getattr(self._channel, kind)(f"/{self._service}/{name}", same, same)

    def unary(self) -> None:
        assert self._call("unary_unary", "echo")(b"hi", timeout=WAIT) == b"hi"

    def metadata(self) -> None:
        answer = self._call("unary_unary", "echo").with_call(b"", timeout=WAIT, metadata=(("x-field", "v"),))
        assert dict(answer[1].initial_metadata())["x-field"] == "v"
        last = dict(answer[1].trailing_metadata())
        assert (last["x-field"], last["x-field-bin"]) == ("v", b"\0\xff"), last

    def a_hundred_calls_at_a_time(self) -> None:
        lines = [queue.SimpleQueue[bytes | None]() for _ in range(100)]
        answers = [self._call("stream_stream", "chat")(iter(line.get, None), timeout=WAIT) for line in lines]
        for line in lines:
            line.put(b"one")
        assert [next(answer) for answer in answers] == [b"one"] * 100
        for line in lines:
            line.put(b"two")
            line.put(None)
        assert [list(answer) for answer in answers] == [[b"two"]] * 100

    def messages_both_ways_in_turn(self) -> None:
        line = queue.SimpleQueue[bytes | None]()
        answer = self._call("stream_stream", "chat")(iter(line.get, None), timeout=WAIT)
        for number in range(50):
            line.put(str(number).encode())
            assert next(answer) == str(number).encode()
        line.put(None)
        assert list(answer) == []

    def megabytes_from_the_server(self) -> None:
        assert sum(map(len, self._call("unary_stream", "count")(b"10", timeout=WAIT))) == 2_000_000

    def megabytes_to_the_server(self) -> None:
        assert self._call("stream_unary", "collect")(iter([MESSAGE] * 10), timeout=WAIT) == b"2000000"

    def an_error_without_a_message(self) -> None:
        error = self._fails(lambda: self._call("unary_unary", "refuse")(b"", timeout=WAIT))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such th\u00efng"), error

    def a_method_that_is_not_there(self) -> None:
        error = self._fails(lambda: self._call("unary_unary", "nothing")(b"", timeout=WAIT))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

    def a_deadline(self) -> None:
        error = self._fails(lambda: self._call("unary_unary", "hold")(b"", timeout=1))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert self._call("unary_unary", "was_cancelled")(b"", timeout=WAIT) == b"yes"

    def _fails(self, call: Callable[[], Any]) -> Any:
        try:
            call()
        except grpc.RpcError as error:
            return error
        raise AssertionError("the call did not fail")


def call(target: str, service: str, root: str = "") -> None:
    caller = Caller(target, service, root)
    for name in (name for name in vars(Caller) if not name.startswith("_")):
        start = time.monotonic()
        getattr(caller, name)()
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)


if sys.argv[1] == "serve":
    serve(sys.argv[2:])
else:
    call(*sys.argv[2:])
