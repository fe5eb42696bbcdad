"""How those who bind to a durable job get on with its history: from memory, or from the store."""

from __future__ import annotations

from aemd.core.deadlines import Deadlines, Due
from aemd.core.effects import Effect, Fetch
from aemd.core.history import Record
from aemd.core.job import JobState
from aemd.core.limits import SECOND
from aemd.core.now import Now
from aemd.core.reader import Reader
from aemd.core.throttle import Throttle

FETCH_RECORDS = 256  # asked for at once
RETRY_NS = 1 * SECOND  # after which a disk that failed is asked again; the store tries to write as often


class Reading:
    """The part of the engine that feeds readers."""

    now: Now
    _deadlines: Deadlines
    _throttle: Throttle
    _effects: list[Effect]

    def read_on(self, reader: Reader) -> None:
        """Take what the reader has room for; to be called once its session was told of it."""
        job = reader.job
        durable = job.durable
        assert durable is not None
        if job.state is JobState.CLOSING:
            return  # what is not in flight was given up
        while not reader.fetching:
            if reader.position < durable.oldest:
                going = reader.skip(durable.oldest)
            else:
                records = durable.after(reader.position, FETCH_RECORDS)
                if records is None:
                    reader.fetching = True
                    self._effects.append(Fetch(reader, reader.position, FETCH_RECORDS))
                    break
                if not records:
                    reader.paused = False
                    self._throttle.forget(reader)
                    break
                going = reader.take(records, durable, self.now.mono_ns)
            if not going:
                break
        if reader.listed < 0:
            reader.session.wake(reader)

    def fetched(self, reader: Reader, records: list[Record], now: Now) -> None:
        """What a Fetch asked for; nothing, if it was trimmed meanwhile, or the disk failed: then it is asked
        for once more after a while.
        """
        self.now = now
        reader.fetching = False
        durable = reader.job.durable
        assert durable is not None
        if reader not in durable.readers or reader.job.state is JobState.CLOSING:
            return
        if reader.position < durable.oldest:
            self.read_on(reader)  # what it asked for may be trimmed, and this comes first
            return
        if not records:
            self._deadlines.set((Due.READ, reader), now.mono_ns + RETRY_NS)
            return
        if reader.take(records, durable, now.mono_ns):
            self.read_on(reader)
        elif reader.listed < 0:
            reader.session.wake(reader)
