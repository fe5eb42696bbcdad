"""Event module `counter`, from outside the project: counts the bytes that are written to a FIFO.

A FIFO (fifo(7)) keeps up to 64 KiB for its reader, and a writer waits when it is full, so nothing is lost
between the job's start and its end. The module opens it for reading and writing: a FIFO without any writer
would be at end of file, and readable, all the time.
"""

from aemd_module_counter.counter import Counter

__all__ = ["Counter"]
