"""What a program asks of a durable job: which one, made how, read from where."""

from __future__ import annotations

from datetime import datetime

from aem.history import Cursor, StartFrom
from aem.v1 import job_pb2, session_pb2

WORDS = {"now": session_pb2.FROM_NOW, "oldest": session_pb2.FROM_OLDEST}


class Hold:
    """One program's hold on a durable job.

    `name`: its name or its id. `request`: make it first, if it is not there. `follow`: only read it. `at` is
    where a follower goes on: the daemon knows only how far the one is that answers.
    """

    __slots__ = ("acknowledgement", "at", "begin", "follow", "name", "request")

    def __init__(
        self,
        name: str | int,
        *,
        follow: bool,
        start_from: StartFrom,
        request: job_pb2.CreateJobRequest | None = None,
    ) -> None:
        """Raises ValueError for a start_from that says nothing."""
        self.name = name
        self.request = request
        self.follow = follow
        self.begin = _begin(start_from)
        self.at: Cursor | None = None
        self.acknowledgement = job_pb2.ACKNOWLEDGEMENT_UNSPECIFIED

    def bind(self, job: int, *, again: bool, credit: job_pb2.Credit) -> session_pb2.Bind:
        """The Bind. `again`: there was one before, whose place is taken up."""
        bind = session_pb2.Bind()
        if not again:
            bind.CopyFrom(self.begin)
        elif self.at is not None:
            setattr(bind, "from", session_pb2.FROM_CURSOR)  # a keyword of Python
            bind.cursor.epoch, bind.cursor.seq = self.at
        bind.job = job
        bind.role = session_pb2.ROLE_FOLLOW if self.follow else session_pb2.ROLE_REPLY
        bind.credit.CopyFrom(credit)
        return bind


def _begin(start_from: StartFrom) -> session_pb2.Bind:
    """Where a first Bind begins."""
    bind = session_pb2.Bind()
    if start_from is None:
        return bind
    if isinstance(start_from, datetime):
        setattr(bind, "from", session_pb2.FROM_TIME)
        bind.time_ns = round(start_from.timestamp() * 1e6) * 1_000
    elif isinstance(start_from, str) and start_from in WORDS:
        setattr(bind, "from", WORDS[start_from])
    elif isinstance(start_from, str | tuple):
        setattr(bind, "from", session_pb2.FROM_CURSOR)
        bind.cursor.epoch, bind.cursor.seq = _cursor(start_from)
    else:
        raise ValueError(f"start_from={start_from!r}: neither a word, a Cursor nor a datetime")
    return bind


def _cursor(given: str | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(given, str):
        return given
    try:
        return Cursor.parse(given)
    except ValueError as error:
        raise ValueError(f"start_from: {error}; or oldest, now, a datetime") from None
