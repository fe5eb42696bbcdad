"""The terminal of `aemctl top`: curses(3X), which redraws only the cells that have changed.

Rules: the terminal is given back in whatever way this ends (curses.wrapper, also when a signal raises), and
samples are taken on a thread of their own, so that keys work while the daemon is slow. What cannot be shown
in the terminal's character set is shown as ?.
"""

from __future__ import annotations

import curses
import locale
import queue
import threading
import time
from collections.abc import Callable

from aemd.cli.board import Board, Line, Sample

TICK_MS = 200  # how soon a new sample is seen; keys are seen at once
INTERVALS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # seconds, for + and -

_PAGE = {curses.KEY_NPAGE: 1, curses.KEY_PPAGE: -1}
_STEP = {curses.KEY_DOWN: 1, curses.KEY_UP: -1}


class Sampler:
    """Takes samples, one an interval, on a thread of its own."""

    def __init__(self, sample: Callable[[], Sample], interval: float) -> None:
        self.interval = interval
        self.paused = False
        self._sample = sample
        self._samples: queue.SimpleQueue[Sample] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Take no more. One that is being taken is not waited for."""
        self._ended = True
        self._wake.set()

    def take(self) -> Sample | None:
        """The newest sample that was not taken yet."""
        newest = None
        try:
            while True:
                newest = self._samples.get_nowait()
        except queue.Empty:
            return newest

    def hurry(self) -> None:
        """The interval has changed, or the pause is over."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended:
            if not self.paused:
                self._samples.put(self._sample())
            due = time.monotonic() + self.interval
            self._wake.wait(max(due - time.monotonic(), 0) if not self.paused else None)
            self._wake.clear()


def run(board: Board, sampler: Sampler) -> None:
    """Show the board until q is pressed. curses.error where the terminal cannot do that."""
    locale.setlocale(locale.LC_ALL, "")
    curses.wrapper(lambda window: _Screen(window, board, sampler).run())


class _Screen:
    """The loop of keys and pictures."""

    def __init__(self, window: curses.window, board: Board, sampler: Sampler) -> None:
        self._window = window
        self._board = board
        self._sampler = sampler
        self._styles = {
            "plain": 0,
            "bold": curses.A_BOLD,
            "inverse": curses.A_REVERSE,
            "alarm": curses.A_BOLD,
        }
        if curses.has_colors():
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
            self._styles["alarm"] |= curses.color_pair(1)
        try:
            curses.curs_set(0)
        except curses.error:
            pass  # a terminal that cannot hide its cursor
        window.timeout(TICK_MS)

    def run(self) -> None:
        """Until q."""
        self._sampler.start()
        try:
            self._draw()
            while True:
                key = self._window.getch()
                if key in (ord("q"), ord("Q")):
                    return
                sample = self._sampler.take()
                if sample is not None:
                    self._board.take(sample)
                if self._pressed(key) or sample is not None:
                    self._draw()
        finally:
            self._sampler.end()

    def _pressed(self, key: int) -> bool:
        """Whether the picture is another one by that."""
        sampler, board = self._sampler, self._board
        rows = self._window.getmaxyx()[0]
        if key == curses.KEY_RESIZE:
            curses.update_lines_cols()
            self._window.clearok(True)  # what the terminal shows after it is anybody's guess
        elif key in _STEP:
            board.scroll(_STEP[key])
        elif key in _PAGE:
            board.scroll(_PAGE[key] * max(rows - 6, 1))
        elif key == curses.KEY_HOME:
            board.first = 0
        elif key == ord(" "):
            sampler.paused = not sampler.paused
            sampler.hurry()
        elif key in (ord("+"), ord("=")):
            sampler.interval = next((one for one in INTERVALS if one > sampler.interval), INTERVALS[-1])
        elif key == ord("-"):
            sampler.interval = next((one for one in INTERVALS[::-1] if one < sampler.interval), INTERVALS[0])
            sampler.hurry()
        else:
            return 0 < key < 128 and board.sort(chr(key))
        return True

    def _draw(self) -> None:
        rows, columns = self._window.getmaxyx()
        note = "paused; space goes on, q quits" if self._sampler.paused else ""
        self._window.erase()
        for place, line in enumerate(self._board.lines(columns, rows, note=note)):
            self._put(place, line, columns)
        self._window.refresh()

    def _put(self, place: int, line: Line, columns: int) -> None:
        encoding = locale.getpreferredencoding()
        text = line.text.encode(encoding, "replace").decode(encoding)
        style = self._styles[line.style]
        try:
            self._window.addstr(place, 0, text, style)
            if line.style == "inverse":
                self._window.chgat(place, 0, columns, style)
        except curses.error:
            pass  # behind the last cell of the last line there is no place for the cursor; it is drawn
