"""A small file system for the state of one daemon, in a mount namespace of its own. It can be filled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from types import TracebackType
from typing import Self

BYTES = 16 << 20
PIECE = bytes(65_536)
MOUNT = 'mount -t tmpfs -o size={size},mode=0700 none "{path}" && echo mounted && exec sleep infinity'


class Disk:
    """Mounted at `path`, seen by nobody but who is inside."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._holder: subprocess.Popen[str] | None = None
        self.full = False

    def __enter__(self) -> Self:
        os.mkdir(self._path)
        script = MOUNT.format(size=BYTES, path=self._path)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.communicate()

    def inside(self, command: Callable[[], list[str]]) -> Callable[[], list[str]]:
        """The same command, where the disk is mounted."""

        def enter() -> list[str]:
            assert self._holder is not None
            return ["nsenter", "--target", str(self._holder.pid), "--mount", "--", *command()]

        return enter

    @property
    def _filler(self) -> str:
        assert self._holder is not None
        return f"/proc/{self._holder.pid}/root{self._path}/filler"

    def fill(self) -> None:
        """Nothing fits any more."""
        self.full = True
        with open(self._filler, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(PIECE)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self) -> None:
        """There is room again."""
        if self.full:
            os.unlink(self._filler)
            self.full = False
