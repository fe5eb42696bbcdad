"""Live kernel objects that event modules read: timerfd, pidfd, sockets.

Each file opens with what the kernel interface promises, what it loses and the traps. A source knows the
kernel and nothing of jobs; `OSError` becomes an `AemError` or a fault here, with the name of the system call.
"""
