"""Registrations that outlive a daemon that is killed: what changes of them goes on a tape that the service
manager keeps.

What a turn has changed is written at its end, or earlier if an answer is about to leave: whoever has been
told that a job is registered finds it again. Where there is no manager, nothing is written.

The next daemon reads the tape and begins it afresh with what it could take up. In between the tape is kept
short: records that say nothing any more are left behind, and those that do are moved on, a few with each
write, so that no turn has much to do with it and nothing is done while nothing changes.

A tape that cannot be used costs what it would have kept, and a line in the log. So does a tape that cannot be
written any more: it is given up, and the daemon serves on without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from aemd.core.engine import Engine
from aemd.core.frozen import FrozenSession
from aemd.core.registrations import (
    Begun,
    Record,
    Registered,
    Teller,
    begun,
    encode,
    parse_record,
    replay,
    stands,
)
from aemd.service import log
from aemd.service.notify import Notifier
from aemd.store.tape import Header, Tape, TapeError, framed

NAME = "registrations"  # of the descriptor in the manager's store
TAPE_BYTES_MAX = 1 << 30  # of records, also those that say nothing any more
WRITE_BYTES = 1024 * 1024  # written at once when the tape begins afresh
LEFT_BYTES_MIN = 256 * 1024  # may say nothing, however little there is
MOVE_FACTOR = 4  # bytes of records that are looked at for each one that is written
MOVE_BYTES = 64 * 1024  # looked at in one turn, 2.5 ms; more only where more is written
TRIES_MAX = 3  # daemons that died of taking it up; then it is left


class TapeFullError(Exception):
    """There are more registrations than a tape may hold."""


class Registrations:
    """The tape of one daemon, with what it was left by the one before."""

    def __init__(self, engine: Engine, notifier: Notifier, found: Iterable[int], teller: Teller) -> None:
        """`found`: what the manager has kept under NAME; taken over."""
        self._engine = engine
        self._notifier = notifier
        self._found = list(found)
        self._teller = teller
        self._tape: Tape | None = None
        self._fresh = True  # nothing of it is this daemon's yet
        self._until = 0  # records up to there are being moved on; 0: none
        self._idle_bytes = 0  # of records that say nothing any more, about
        self._passed_bytes = 0  # of those, what will be left behind when it has got to _until

    def open(self) -> None:
        """Take the tape that there is, or make one."""
        if not self._notifier:
            self._drop_found()
            return
        try:
            self._tape = self._adopt() or self._create()
        except OSError as error:
            self._give_up(error)
        else:
            self._engine.changes.wanted = True

    def _adopt(self) -> Tape | None:
        """What is kept, if it can be read; else it is kept no longer."""
        if len(self._found) == 1:
            try:
                tape = Tape(self._found[0])
            except (TapeError, OSError) as error:
                log.get().warning("registrations left", **{log.REASON: str(error)})
            else:
                self._found.clear()
                return tape
        if self._found:
            self._notifier.forget(NAME)
        self._drop_found()
        return None

    def _create(self) -> Tape:
        tape = Tape.create()
        if not self._notifier.store(NAME, (tape.fd,), poll=False):
            tape.close()
            raise TimeoutError("the service manager does not take them")
        return tape

    def _drop_found(self) -> None:
        for fd in self._found:
            os.close(fd)
        self._found.clear()

    def sessions(self) -> list[FrozenSession]:
        """What the daemon before has left."""
        tape = self._tape
        if tape is None:
            return []
        header = tape.header
        self._engine.ids_begin(header.next_job, header.next_session)
        if header.begin == header.end:
            return []
        try:
            if header.tries >= TRIES_MAX:
                raise TapeError(f"{header.tries} daemons did not live to take it up")
            tape.commit(header._replace(tries=header.tries + 1))
            return replay(_records(tape))
        except (TapeError, ValueError, OSError) as error:
            log.get().warning("registrations left", **{log.REASON: str(error)})
            return []

    def commit(self) -> None:
        """Write what has changed since."""
        tape, engine = self._tape, self._engine
        if tape is None:
            return
        header = tape.header
        ids = (header.next_job, header.next_session) != (engine.next_id, engine.next_session)
        if not (engine.changes or ids or self._fresh):
            return
        try:
            self._commit(tape)
        except (OSError, TapeFullError) as error:
            self._give_up(error)
        except Exception as error:
            log.get().exception("registrations not kept")
            self._give_up(error)

    def _commit(self, tape: Tape) -> None:
        begin = tape.end if self._fresh else tape.header.begin
        taken = self._engine.changes.take(self._teller)
        written = self._write(tape, taken.whole)
        idle = self._write(tape, taken.moves)
        self._idle_bytes += idle + taken.left_bytes
        if not self._fresh:
            begin = self._move_on(tape, begin, written + idle)
        if tape.end - begin > TAPE_BYTES_MAX:
            raise TapeFullError(f"they take {tape.end - begin} bytes, at most {TAPE_BYTES_MAX} are possible")
        tape.commit(Header(begin, tape.end, self._engine.next_id, self._engine.next_session))
        self._fresh = False

    def _write(self, tape: Tape, records: Iterable[Record]) -> int:
        """Returns how many bytes that were."""
        before, waiting, size = tape.end, [], 0
        for record in records:
            waiting.append(framed(encode(record)))
            size += len(waiting[-1])
            if size >= WRITE_BYTES:
                tape.write(b"".join(waiting))
                waiting, size = [], 0
        if waiting:
            tape.write(b"".join(waiting))
        return tape.end - before

    def _move_on(self, tape: Tape, begin: int, written: int) -> int:
        """Leave some records behind, if most say nothing any more; returns where the tape begins now."""
        if not self._until:
            if self._idle_bytes <= max((tape.end - begin) // 2, LEFT_BYTES_MIN):
                return begin
            self._until = tape.end
            self._passed_bytes = self._idle_bytes
        moved: list[Record] = []
        until = begin + max(written, min(MOVE_FACTOR * written, MOVE_BYTES))
        for data, behind in tape.records(begin, self._until):
            moved += self._still(parse_record(data))
            begin = behind
            if begin >= until:
                break
        self._write(tape, moved)
        if begin >= self._until:
            self._idle_bytes -= self._passed_bytes
            self._until = 0
        return begin

    def _still(self, record: Record) -> Iterator[Record]:
        """What a record has told as a whole, as it is now; nothing if it is gone."""
        if not isinstance(record, Begun | Registered):
            return
        session = self._engine.session(record.session)
        if session is None:
            return
        if isinstance(record, Begun):
            yield begun(session)
            return
        binding = session.bindings.get(record.binding)
        if binding is not None and stands(binding.job):
            yield self._teller.registered(binding.job)

    def _give_up(self, error: Exception) -> None:
        """What is on the tape would not be true for long."""
        log.get().error("registrations not kept", **{log.ERROR: str(error)})
        self._notifier.forget(NAME)
        self._engine.changes.wanted = False
        self._engine.changes.forget()
        self._void()
        self.close()

    def _void(self) -> None:
        """For the manager may have it still."""
        tape = self._tape
        if tape is None:
            return
        try:
            tape.commit(Header(tape.end, tape.end, self._engine.next_id, self._engine.next_session))
        except OSError:
            pass  # no page is needed for it that is not there

    def close(self) -> None:
        """Write no more: what is there now is what the next daemon may find."""
        if self._tape is not None:
            self._tape.close()
            self._tape = None


def _records(tape: Tape) -> Iterator[Record]:
    for data, _ in tape.records(tape.header.begin, tape.header.end):
        yield parse_record(data)
