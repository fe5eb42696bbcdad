"""Which entry is handled next.

Entries are handled in the order in which they came. Those of a registration whose handlers run beside
others (a process of their own, a coroutine) go by lanes: one lane a job, or one a key where events are
answered one by one; a lane holds one entry at a time, the others wait behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from aem._binding import EXPLICIT, Binding, Entry
from aem._registration import Registration


class Dispatcher:
    """Entries that wait for their handlers. `wake` is called when there is something to take."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._fifo: deque[Entry] = deque()
        self._ready: deque[Entry] = deque()
        self._lanes: dict[object, deque[Entry]] = {}
        self._running: set[Entry] = set()
        self._rooms: dict[tuple[Registration, bytes], None] = {}
        self._inline: set[Entry] = set()  # handled on the thread that took them, or about to be told of

    def put(self, entries: list[Entry]) -> None:
        """Take entries, in order."""
        self._fifo.extend(entries)
        self._wake()

    def room(self, registration: Registration, key: bytes) -> None:
        """More may be written to the connection `key`: its on_room is to be called."""
        if registration.on_room is not None:
            self._rooms[registration, key] = None
            self._wake()

    @property
    def has_rooms(self) -> bool:
        """Whether take_rooms() would return any."""
        return bool(self._rooms)

    def take_rooms(self) -> list[tuple[Registration, bytes]]:
        """The connections that have got room since the last call."""
        found = list(self._rooms)
        self._rooms.clear()
        return found

    def take(self) -> Entry | None:
        """The next entry that may run; done() must follow."""
        if self._ready:
            return self._start(self._ready.popleft())
        while self._fifo:
            entry = self._fifo.popleft()
            binding = entry.binding
            if not binding.registration.parallel:
                self._inline.add(entry)
                return entry
            key = entry.parse().key if binding.acknowledgement == EXPLICIT and entry.gap is None else b""
            entry.lane = (binding, key)
            lane = self._lanes.get(entry.lane)
            if lane is None:
                self._lanes[entry.lane] = deque()
                return self._start(entry)
            lane.append(entry)
        return None

    def take_plain(self, most: int) -> list[Entry]:
        """The next entries, if they are events of one binding that are handled inline and not answered one by
        one; [] if the next entry is anything else. done() or put_back() must follow for each.
        """
        fifo = self._fifo
        if self._ready or not fifo:
            return []
        binding = fifo[0].binding
        registration = binding.registration
        if registration.parallel or registration.given_up or binding.acknowledgement == EXPLICIT:
            return []
        entries: list[Entry] = []
        while fifo and len(entries) < most and fifo[0].binding is binding and fifo[0].gap is None:
            entry = fifo.popleft()
            entry.begun = True
            entries.append(entry)
        binding.running += len(entries)
        self._inline.update(entries)
        return entries

    def put_back(self, entries: list[Entry]) -> None:
        """Entries that were taken, and whose handlers did not begin."""
        self._inline.difference_update(entries)
        for entry in reversed(entries):
            entry.begun = False
            entry.binding.running -= 1
            self._fifo.appendleft(entry)

    def _start(self, entry: Entry) -> Entry:
        self._running.add(entry)
        return entry

    def done_inline(self, entries: list[Entry]) -> None:
        """`entries`, all handled on the thread that took them, are dealt with."""
        self._inline.difference_update(entries)

    def done(self, entry: Entry) -> None:
        """`entry` is dealt with: the next of its lane may run."""
        if entry.lane is None:
            self._inline.discard(entry)
            return
        self._running.discard(entry)
        lane = self._lanes[entry.lane]
        if lane:
            self._ready.append(lane.popleft())
            self._wake()
        else:
            del self._lanes[entry.lane]

    @property
    def running(self) -> int:
        """How many entries are being handled beside others."""
        return len(self._running)

    def waiting(self, binding: Binding) -> list[Entry]:
        """The entries of `binding` that wait or are being handled."""
        places = [self._inline, self._fifo, self._ready, self._running, *self._lanes.values()]
        return [entry for place in places for entry in place if entry.binding is binding]

    def drop(self, binding: Binding) -> list[Entry]:
        """Give up the entries of `binding` whose handlers have not begun, and return them."""
        dropped = [entry for entry in (*self._ready, *self._fifo) if entry.binding is binding]
        self._ready = deque(entry for entry in self._ready if entry.binding is not binding)
        self._fifo = deque(entry for entry in self._fifo if entry.binding is not binding)
        running = {entry.lane for entry in self._running}
        for lane, entries in list(self._lanes.items()):
            mine = [entry for entry in entries if entry.binding is binding]
            dropped += mine
            for entry in mine:
                entries.remove(entry)
            if not entries and lane not in running:
                del self._lanes[lane]
        return dropped

    def ended(self) -> None:
        """No more will come for one of the registrations."""
        self._wake()
