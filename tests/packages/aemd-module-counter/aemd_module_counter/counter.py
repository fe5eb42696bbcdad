"""The module itself: one descriptor for each job, one event for each read."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf import any_pb2, struct_pb2

from aemd.core.errors import invalid
from aemd.core.right import Act
from aemd.modules.contract import Basic, Delivery, Description, Host, Job, Kind, Parameter, encode
from aemd.v1 import event_pb2

READ_BYTES = 65_536  # what a FIFO holds


@dataclass(slots=True)
class _Counted:
    fd: int
    total: int = 0
    armed: bool = False


class Counter(Basic):
    """Counts bytes written to a FIFO."""

    description = Description(
        name="counter",
        summary="Bytes written to a FIFO",
        description="Reads a FIFO and says how many bytes were written to it.",
        delivery=Delivery.QUEUE,
        parameters=(
            Parameter(
                "path",
                Kind.PARAMETER_KIND_BYTES,
                "The FIFO's path, absolute.",
                required=True,
                example="/run/lines.fifo",
            ),
        ),
        events={"counted": "Bytes were written: a Struct with bytes and total."},
        pausable=True,
        payload_message="google.protobuf.Struct",
        examples=("counter path=/run/lines.fifo",),
    )

    def __init__(self, host: Host) -> None:
        self._host = host

    def open(self, job: Job) -> None:
        """Open the FIFO."""
        path = job.values["path"]
        assert isinstance(path, bytes)
        shown = os.fsdecode(path)
        self._host.right(job.owner, Act(what=f"read {shown}", path=path))
        self._host.charge(job, 1)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise invalid("params.path", f"{shown}: {error}; give the path of a FIFO") from None
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise invalid("params.path", f"{shown} is no FIFO; make one with mkfifo(1)")
        job.data = _Counted(fd)

    def start(self, job: Job) -> None:
        """Read from now on."""
        counted = _counted(job)
        counted.armed = True
        self._host.reactor.add(counted.fd, select.EPOLLIN, lambda _: self._read(job))

    def stop(self, job: Job) -> None:
        """Read no more; writers wait once the FIFO is full."""
        counted = _counted(job)
        counted.armed = False
        self._host.reactor.remove(counted.fd)

    def close(self, job: Job) -> None:
        """Close the FIFO."""
        counted = _counted(job)
        if counted.armed:
            self.stop(job)
        os.close(counted.fd)

    def pause(self, job: Job) -> None:
        """Leave the bytes in the FIFO."""
        self._host.reactor.modify(_counted(job).fd, 0)

    def resume(self, job: Job) -> None:
        """Read again."""
        self._host.reactor.modify(_counted(job).fd, select.EPOLLIN)

    def sync(self, job: Job, done: Callable[[], None]) -> None:
        """Read what is there, then say so."""
        if _counted(job).armed:
            self._read(job)
        done()

    def details(self, job: Job) -> dict[str, str]:
        """How much was counted."""
        return {"total": str(_counted(job).total)}

    def _read(self, job: Job) -> None:
        counted = _counted(job)
        try:
            size = len(os.read(counted.fd, READ_BYTES))
        except BlockingIOError:
            return
        counted.total += size
        payload = struct_pb2.Struct()
        payload.update({"bytes": size, "total": counted.total})
        packed = any_pb2.Any()
        packed.Pack(payload)
        reactor = self._host.reactor
        event = event_pb2.Event(
            type="counted", real_time_ns=reactor.real_ns(), mono_time_ns=reactor.mono_ns(), any=packed
        )
        self._host.fire(job, encode(event))


def _counted(job: Job) -> _Counted:
    assert isinstance(job.data, _Counted)
    return job.data
