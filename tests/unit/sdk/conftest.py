"""A daemon in a few lines, for the SDK: real gRPC over a Unix socket, answers as the test says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from aem.v1 import event_pb2, job_pb2, session_pb2, user_pb2

CLIENT, SERVER = session_pb2.ClientFrame, session_pb2.ServerFrame
WAIT = 10


def user_event(payload: bytes, key: bytes = b"", kind: str = "raised") -> bytes:
    """An encoded event."""
    event = event_pb2.Event(type=kind, key=key, user=user_pb2.UserEvent(channel="c", payload=payload))
    return event.SerializeToString()


def run_frame(binding: int, first: int, events: list[bytes], **more: object) -> session_pb2.ServerFrame:
    """A Batch of one Run."""
    run = session_pb2.Run(binding=binding, epoch=1, first_seq=first, events=events, **more)
    return SERVER(batch=session_pb2.Batch(runs=[run]))


class FakeDaemon:
    """Takes any number of streams; `frames` is what clients said, bundles opened up."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.frames: queue.Queue[session_pb2.ClientFrame] = queue.Queue()
        self.hellos: queue.Queue[session_pb2.Hello] = queue.Queue()
        self.knows_session = True
        self.refuse: Callable[[session_pb2.ClientFrame], session_pb2.ServerFrame | None] = lambda frame: None
        self.bindings: list[int] = []
        self._outs: list[queue.Queue[session_pb2.ServerFrame | None]] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.stream_stream_rpc_method_handler(
            self._session, CLIENT.FromString, SERVER.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("aem.v1.EventService", {"Session": handler})]
        )
        self._server.add_insecure_port(self.address)
        self._server.start()

    def close(self) -> None:
        for out in self._outs:
            out.put(None)
        self._server.stop(0).wait(WAIT)

    def send(self, *frames: session_pb2.ServerFrame) -> None:
        """Send on the newest stream."""
        for frame in frames:
            self._outs[-1].put(frame)

    def cut(self) -> None:
        """End the newest stream, as if the front had died."""
        self._outs[-1].put(None)

    def next(self, name: str) -> session_pb2.ClientFrame:
        """The next frame that holds a `name`; others are passed over."""
        while True:
            frame = self.frames.get(timeout=WAIT)
            if frame.WhichOneof("frame") == name:
                return frame

    def _session(
        self, requests: Iterator[session_pb2.ClientFrame], context: grpc.ServicerContext
    ) -> Iterator[session_pb2.ServerFrame]:
        out: queue.Queue[session_pb2.ServerFrame | None] = queue.Queue()
        cut = threading.Event()

        def read() -> None:
            try:
                for message in requests:
                    inner = message.bundle.frames if message.HasField("bundle") else [message]
                    for frame in inner:
                        self._answer(frame, out)
            except Exception:  # noqa: BLE001 - grpc raises its own kind when the stream ends
                cut.set()
            out.put(None)

        threading.Thread(target=read, daemon=True).start()
        self._outs.append(out)
        while (frame := out.get()) is not None:
            yield frame
        if not cut.is_set():
            context.set_code(grpc.StatusCode.UNAVAILABLE)

    def _answer(
        self, frame: session_pb2.ClientFrame, out: queue.Queue[session_pb2.ServerFrame | None]
    ) -> None:
        number = frame.request_id
        refusal = self.refuse(frame)
        if frame.HasField("hello"):
            self.hellos.put(frame.hello)
            resumed = bool(frame.hello.resume_token) and self.knows_session
            if not resumed:
                self.bindings = []
            welcome = session_pb2.Welcome(
                session=1, resume_token=b"token", version=1, resumed=resumed, bindings=self.bindings
            )
            out.put(SERVER(welcome=welcome))
        elif refusal is not None:
            refusal.request_id = number
            out.put(refusal)
        elif frame.HasField("register"):
            binding = len(self.bindings) + 1
            self.bindings.append(binding)
            registered = session_pb2.Registered(
                job=100 + binding,
                binding=binding,
                start=job_pb2.Cursor(epoch=1, seq=0),
                state=job_pb2.STATE_ARMED if frame.register.start else job_pb2.STATE_REGISTERED,
            )
            out.put(SERVER(request_id=number, registered=registered))
        elif number:
            out.put(SERVER(request_id=number, result=session_pb2.Result()))
        self.frames.put(frame)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "d.sock")
    yield daemon
    daemon.close()
