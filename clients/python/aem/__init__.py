"""The Python SDK of aemd: kernel events with their data, delivered to handlers.

    import aem

    client = aem.Client()

    @client.on("timer", every="1s")
    def tick(event):
        print(event.expirations, event.lateness_ns)

    client.run_forever()

`Client` is the sync face, `AsyncClient` the asyncio face; they have the same words.
"""

from aem.aio import AsyncClient
from aem.client import Client
from aem.errors import AemError, Code, ConnectionLost, OutOfRange, Park, Reply, Retry
from aem.events import Event, Gap, ProcessEvent, SocketEvent, TimerEvent, UserEvent
from aem.execution import Exec
from aem.history import Cursor, Keep, Parked
from aem.job import AsyncJob, Job
from aem.options import Acknowledgement, Options, Overflow, Param
from aem.progress import Progress
from aem.stream import AsyncEventStream, EventStream

__all__ = [
    "Acknowledgement",
    "AemError",
    "AsyncClient",
    "AsyncEventStream",
    "AsyncJob",
    "Client",
    "Code",
    "ConnectionLost",
    "Cursor",
    "Event",
    "EventStream",
    "Exec",
    "Gap",
    "Job",
    "Keep",
    "Options",
    "OutOfRange",
    "Overflow",
    "Param",
    "Park",
    "Parked",
    "ProcessEvent",
    "Progress",
    "Reply",
    "Retry",
    "SocketEvent",
    "TimerEvent",
    "UserEvent",
]

__version__ = "0.1.0"
