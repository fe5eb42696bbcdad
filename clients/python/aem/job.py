"""Jobs as a program holds them: handles on registrations.

`Job` belongs to the sync face, `AsyncJob` to the asyncio face; they have the same words. A handle outlives a
restart of the daemon. Where the daemon does not know the job any more the one behind it is then another, with
a new `id`; a durable one never is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aem._registration import Registration
from aem.progress import Progress
from aem.v1 import job_pb2

if TYPE_CHECKING:
    from aem.aio import AsyncClient
    from aem.client import Client

__all__ = ["AsyncJob", "BaseJob", "Job"]


class BaseJob:
    """What both faces and handler processes know of a job."""

    __slots__ = ("_registration",)

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    @property
    def id(self) -> int:
        """Its id, unique on the machine; 0 before it is registered."""
        return self._registration.id

    @property
    def module(self) -> str:
        """The event module."""
        return self._registration.module

    @property
    def label(self) -> str:
        """What it is called, usually the handler's name."""
        return self._registration.label

    @property
    def state(self) -> str:
        """REGISTERED, ARMED, DEGRADED, CLOSING or GONE; UNSPECIFIED before it is registered."""
        return job_pb2.State.Name(self._registration.state).removeprefix("STATE_")

    @property
    def reason(self) -> str:
        """Why it is in its state, if there is something to say."""
        return self._registration.reason

    @property
    def progress(self) -> Progress:
        """How far it is, as the daemon told it last: about once a second while it changes."""
        return self._registration.progress

    @property
    def lag(self) -> int:
        """How many stimuli were not dealt with then."""
        return self._registration.progress.lag

    @property
    def lost(self) -> int:
        """How many were lost until then; each was reported in a Gap."""
        return self._registration.progress.lost

    def room(self, key: bytes) -> int:
        """How many bytes may be written to the connection `key` now; the daemon gives more as it sends."""
        return self._registration.rooms.get(key, 0)

    @property
    def durable(self) -> bool:
        """It outlives this program: close() lets go of it, and shutdown() ends it with its history."""
        return self._registration.hold is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.module} {self.state}>"


def _of_durable(job: BaseJob) -> Registration:
    """Its registration, if it is a durable job."""
    if not job.durable:
        raise ValueError(f"job {job.id} is not durable: shutdown() ends it")
    return job._registration


class Job(BaseJob):
    """A job of a `Client`."""

    __slots__ = ("_client",)

    def __init__(self, registration: Registration, client: Client) -> None:
        super().__init__(registration)
        self._client = client

    def start(self) -> None:
        """Arm it. Starting an armed job changes nothing."""
        self._client._ask(self._client._protocol.start(self._registration))

    def stop(self) -> None:
        """Disarm it; what is queued stays."""
        self._client._ask(self._client._protocol.stop(self._registration))

    def shutdown(self, deadline: float | None = None) -> None:
        """End it, after the handler that runs now; the daemon waits for that at most `deadline` seconds."""
        self._client._ask(self._client._protocol.shutdown(self._registration, deadline))

    def set_priority(self, priority: int) -> None:
        """Change its priority, 0 to 7, 7 first."""
        self._client._ask(self._client._protocol.set_priority(self._registration, priority))

    def operate(self, key: bytes, operation: str, data: bytes | str = b"") -> None:
        """Output that answers no particular event: do `operation` with the connection `key`."""
        self._client._ask(self._client._protocol.operate(self._registration, key, operation, data))

    def sync(self, timeout: float | None = None) -> None:
        """Return once everything that the kernel had queued for it until now has arrived here.

        Arrived, not handled. It arrives within the job's credit, so handlers must go on running for it.
        """
        self._client._ask(self._client._protocol.sync(self._registration), timeout)

    def unbind(self) -> None:
        """Let go of a durable job: its events wait for whoever binds next. ValueError for any other."""
        self._client._protocol.unbind(_of_durable(self))

    def stats(self) -> job_pb2.JobStats:
        """What has happened to it so far."""
        return self._client.get_job(self.id).stats


class AsyncJob(BaseJob):
    """A job of an `AsyncClient`; the words of `Job`, awaited."""

    __slots__ = ("_client",)

    def __init__(self, registration: Registration, client: AsyncClient) -> None:
        super().__init__(registration)
        self._client = client

    async def start(self) -> None:
        """Arm it. Starting an armed job changes nothing."""
        await self._client._ask(self._client._protocol.start(self._registration))

    async def stop(self) -> None:
        """Disarm it; what is queued stays."""
        await self._client._ask(self._client._protocol.stop(self._registration))

    async def shutdown(self, deadline: float | None = None) -> None:
        """End it, after the handler that runs now; the daemon waits for that at most `deadline` seconds."""
        await self._client._ask(self._client._protocol.shutdown(self._registration, deadline))

    async def set_priority(self, priority: int) -> None:
        """Change its priority, 0 to 7, 7 first."""
        await self._client._ask(self._client._protocol.set_priority(self._registration, priority))

    async def operate(self, key: bytes, operation: str, data: bytes | str = b"") -> None:
        """Output that answers no particular event: do `operation` with the connection `key`."""
        await self._client._ask(self._client._protocol.operate(self._registration, key, operation, data))

    async def sync(self, timeout: float | None = None) -> None:
        """Return once everything that the kernel had queued for it until now has arrived here."""
        await self._client._ask(self._client._protocol.sync(self._registration), timeout)

    async def unbind(self) -> None:
        """Let go of a durable job: its events wait for whoever binds next. ValueError for any other."""
        self._client._protocol.unbind(_of_durable(self))

    async def stats(self) -> job_pb2.JobStats:
        """What has happened to it so far."""
        return (await self._client.get_job(self.id)).stats
