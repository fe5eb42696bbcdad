"""A registration as the client keeps it: what was asked for, which job it is now, where its entries go.

It outlives the job: when the daemon has been restarted, the same registration becomes a new job with a new
id, and the program's handle goes on. One that holds a durable job finds that job again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from aem._binding import Binding, Entry
from aem._hold import Hold
from aem.options import Options
from aem.progress import Progress
from aem.v1 import job_pb2, session_pb2

if TYPE_CHECKING:
    from aem.job import BaseJob

# Modules whose handlers do not reply; for any other each event is answered, which every module allows.
CUMULATIVE_MODULES = frozenset({"process", "timer", "user"})
RUNS = ("inline", "fork", "capsule")


def default_acknowledgement(module: str) -> int:
    """How events of `module` are acknowledged if nobody says it."""
    if module in CUMULATIVE_MODULES:
        return job_pb2.ACKNOWLEDGEMENT_CUMULATIVE
    return job_pb2.ACKNOWLEDGEMENT_EXPLICIT


class Sink(Protocol):
    """Where entries wait for their handler."""

    def put(self, entries: list[Entry]) -> None:
        """Take entries, in order."""

    def waiting(self, binding: Binding) -> list[Entry]:
        """The entries of `binding` that wait or are being handled."""

    def drop(self, binding: Binding) -> list[Entry]:
        """Give up the entries of `binding` whose handlers have not begun, and return them."""

    def room(self, registration: Registration, key: bytes) -> None:
        """More may be written to the connection `key`."""

    def ended(self) -> None:
        """No more will come."""


class Registration:
    """What one call of on(), register() or events() asked for."""

    __slots__ = (
        "armed",
        "binding",
        "former",
        "given_up",
        "handler",
        "hold",
        "id",
        "job",
        "label",
        "module",
        "on_gap",
        "on_room",
        "options",
        "parallel",
        "params",
        "pool",
        "progress",
        "reason",
        "rooms",
        "run",
        "sink",
        "state",
    )

    def __init__(
        self,
        module: str,
        params: dict[str, job_pb2.Value],
        *,
        options: Options,
        label: str,
        armed: bool,
        sink: Sink,
        handler: Callable[..., Any] | None = None,
        on_gap: Callable[..., Any] | None = None,
        on_room: Callable[[bytes, int], Any] | None = None,
        run: str = "inline",
        pool: int = 0,
        hold: Hold | None = None,
    ) -> None:
        """`hold`: it is a durable job."""
        if run not in RUNS:
            raise ValueError(f"run={run!r}: not one of {', '.join(RUNS)}")
        self.module = module
        self.params = params
        self.options = options
        self.label = label
        self.armed = armed
        self.sink = sink
        self.handler = handler
        self.on_gap = on_gap
        self.on_room = on_room
        self.run = run
        self.pool = pool
        self.parallel = run != "inline"  # its entries may be handled beside those of others
        self.given_up = False  # the program shut it down: what waits is not handled any more
        self.id = 0
        self.state = job_pb2.STATE_UNSPECIFIED
        self.reason = ""
        self.binding: Binding | None = None
        self.former: Binding | None = None  # of a durable job that is not bound anew yet
        self.hold = hold
        self.job: BaseJob
        self.rooms: dict[bytes, int] = {}
        self.progress = Progress()

    @property
    def acknowledgement(self) -> int:
        """How its events are acknowledged; said to the daemon, so that both sides know."""
        asked = self.options.message().acknowledgement
        if self.hold is not None and self.hold.acknowledgement:
            asked = self.hold.acknowledgement
        return asked or default_acknowledgement(self.module)

    @property
    def gone(self) -> bool:
        """There is no job behind it any more, and will be none."""
        return self.given_up or self.state == job_pb2.STATE_GONE

    def frame(self) -> session_pb2.ClientFrame:
        """The Register that makes it a job, or the Bind to a durable one."""
        credit = job_pb2.Credit(events=self.options.credit_events, bytes=self.options.credit_bytes)
        if self.hold is not None:
            if self.former is not None:
                credit = self.former.window.reopen()
            bind = self.hold.bind(self.id, again=self.former is not None, credit=credit)
            return session_pb2.ClientFrame(bind=bind)
        options = self.options.message()
        options.acknowledgement = self.acknowledgement  # type: ignore[assignment]
        register = session_pb2.Register(
            module=self.module,
            params=self.params,
            options=options,
            start=self.armed,
            credit=credit,
            label=self.label,
        )
        return session_pb2.ClientFrame(register=register)

    def learn(self, job: job_pb2.Job) -> None:
        """It holds this durable job."""
        assert self.hold is not None
        self.id = job.id
        self.module = job.module
        self.hold.acknowledgement = job.options.acknowledgement

    def end(self, reason: str) -> None:
        """The job is gone."""
        self.state = job_pb2.STATE_GONE
        self.reason = reason
        for binding in (self.binding, self.former):
            if binding is not None:
                binding.alive = False
        self.sink.ended()
