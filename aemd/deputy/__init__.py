"""The deputy: does what a caller asks for with the caller's own rights, and with nothing else.

A process of its own, forked by the core when the first path is asked for. It forks one short-lived child for
each request; the child becomes the caller for good (`caller.py`), does one thing (`task.py`) and is gone. So
no path is ever opened by somebody who has more rights than who named it, and a file system that hangs holds
up one child and nobody else. What the two processes say to each other is `protocol.py`; nothing outside the
standard library is imported here.
"""
