"""Event module `process`: the end of a process, with its status.

Any process of the caller's, not only children. "The caller's" is meant as the kernel means it where it
guards a process: real, effective and saved uid are all the caller's, and its user namespace is too. A
process that has changed its rights (sudo, passwd) is another's, and another's is the same answer as none.
That is asked when the job is made and again when the process has ended: a process that has become another's
meanwhile is told to have ended, since its pid says so to everybody, and not how.

A caller in a pid namespace of its own asks for the numbers that it knows, and is told those.

Jobs of one user on one process share a pidfd. Its descriptor is charged to one of them, and handed to the
next when that one goes. What is known of the end is read when it happens, also while a job is stopped, since
a reaped process can no longer be asked; the job fires when it is started again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aemd.core.errors import AemError, Code
from aemd.core.principal import Owner, Principal
from aemd.core.right import Act, right
from aemd.modules.contract import Basic, Delivery, Description, Host, Job, Kind, Parameter, encode
from aemd.sources.pidfd import Ending, Facts, ProcessExit, gone, look
from aemd.sources.pidnamespace import daemons_pid
from aemd.v1 import event_pb2, process_pb2

PID_MAX = 4_194_304  # PID_MAX_LIMIT of <linux/threads.h>
SIGNAL_RT_MIN = 34  # glibc keeps 32 and 33 for itself; signal(7)
SIGNAL_RT_MAX = 64


class _Watched:
    """A process, its jobs by id, and once it has ended how, and when on both clocks."""

    __slots__ = ("armed", "charged", "ending", "jobs", "owner", "source", "times", "told")

    def __init__(self, owner: Owner, source: ProcessExit, charged: Job) -> None:
        self.owner = owner
        self.source = source
        self.charged: Job | None = charged  # who pays for the descriptor
        self.jobs: dict[int, Job] = {}
        self.armed: dict[int, Job] = {}
        self.told: set[int] = set()  # an end is told once, also to who is stopped and started again
        self.ending: Ending | None = None
        self.times = (0, 0)


class Process(Basic):
    """The end of processes."""

    description = Description(
        name="process",
        summary="The end of a process: exit status, signal, core dump",
        description=(
            "Fires once, when the process exits, and the job ends with it. The process need not be a child, "
            "and a zombie that its parent does not reap delays nothing."
        ),
        delivery=Delivery.QUEUE,
        parameters=(
            Parameter(
                "pid",
                Kind.PARAMETER_KIND_INTEGER,
                "The process id.",
                required=True,
                minimum=1,
                maximum=PID_MAX,
                example="4242",
            ),
            Parameter(
                "start_time",
                Kind.PARAMETER_KIND_INTEGER,
                "When it was started, in clock ticks since boot (field 22 of /proc/PID/stat): a process that "
                "has got the number of one that is gone is refused.",
                minimum=0,
                example="245185",
            ),
        ),
        events={"exited": "The process has ended."},
        payload_message="aem.v1.ProcessEvent",
        examples=("process pid=4242", "process pid=$! -o json"),
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._watched: dict[tuple[Owner, int], _Watched] = {}

    def acts(self, principal: Principal, values: Mapping[str, object]) -> Sequence[Act]:
        """Watching the process, as it is now."""
        known_as, start_time = values["pid"], values.get("start_time")
        assert isinstance(known_as, int)
        facts = look(daemons_pid(principal, known_as), known_as)
        if start_time not in (None, facts.start_time_ticks):
            raise gone(known_as)
        return (_watching(principal, facts),)

    def open(self, job: Job) -> None:
        """Find the process. NOT_FOUND, PROCESS_GONE: it is not there, or not for the caller."""
        known_as, start_time = job.values["pid"], job.values.get("start_time")
        assert isinstance(known_as, int)
        pid = daemons_pid(job.owner, known_as)
        watched = self._watched.get((job.owner.owner, pid))
        if watched is None or watched.source.is_reaped():
            watched = self._watch(job, pid, known_as)
        try:
            facts = watched.source.identify()
            self._check_right(job, facts)
            if job.resumed is not None and job.resumed.memento:  # by now the number may be another's
                start_time = int(job.resumed.memento)
            if start_time not in (None, facts.start_time_ticks) or daemons_pid(job.owner, known_as) != pid:
                raise gone(known_as)
        except BaseException:
            if not watched.jobs:
                self._forget(watched)
                self._host.refund(job, 1, sources=1)
            raise
        watched.jobs[job.id] = job
        job.data = watched

    def start(self, job: Job) -> None:
        """Fire when the process ends, or now if it has ended meanwhile."""
        watched = _watched(job)
        if job.id not in watched.told:
            watched.armed[job.id] = job
        if watched.ending is not None:
            self._fire(watched, watched.ending)

    def stop(self, job: Job) -> None:
        """Do not fire; an end meanwhile is kept for start()."""
        _watched(job).armed.pop(job.id, None)

    def close(self, job: Job) -> None:
        """Watch no more for this job; the last one closes the pidfd."""
        watched = _watched(job)
        watched.armed.pop(job.id, None)
        watched.told.discard(job.id)
        del watched.jobs[job.id]
        if not watched.jobs:
            self._forget(watched)
        elif watched.charged is job:
            self._hand_on_charge(watched, job)

    def sync(self, job: Job, done: Callable[[], None]) -> None:
        """A process that has ended is reported before `done`, with what is known by now."""
        _watched(job).source.settle()
        done()

    def memento(self, job: Job) -> bytes | None:
        """Which process it was, beside its number."""
        return b"%d" % _watched(job).source.facts.start_time_ticks

    def anchor(self, job: Job) -> bytes | None:
        """The same: it has no other life."""
        return self.memento(job)

    def details(self, job: Job) -> dict[str, str]:
        """Which process, by the number that its owner knows."""
        facts, namespace = _watched(job).source.facts, job.owner.owner.pid_namespace
        elsewhere = {"pid_namespace": str(namespace)} if namespace else {}
        return {
            "pid": str(facts.pid),
            **elsewhere,
            "command": facts.command,
            "uid": str(facts.uids[0]),
            "start_time": str(facts.start_time_ticks),
        }

    def _watch(self, job: Job, pid: int, known_as: int) -> _Watched:
        """Open the process; its end is handled before it is known who shares it."""
        self._host.charge(job, 1, sources=1)
        try:
            source = ProcessExit(
                self._host.reactor, pid, lambda ending: self._ended(watched, ending), known_as=known_as
            )
        except BaseException:
            self._host.refund(job, 1, sources=1)
            raise
        watched = _Watched(job.owner.owner, source, job)
        self._watched[watched.owner, pid] = watched
        return watched

    def _hand_on_charge(self, watched: _Watched, leaving: Job) -> None:
        heir = next(iter(watched.jobs.values()))
        self._host.refund(leaving, 1, sources=1)
        try:
            self._host.charge(heir, 1, sources=1)
        except AemError:  # the daemon is short of descriptors, but this one is open and stays so
            watched.charged = None
        else:
            watched.charged = heir

    def _forget(self, watched: _Watched) -> None:
        watched.source.close()
        key = (watched.owner, watched.source.pid)
        if self._watched.get(key) is watched:  # else the number has been given to another process
            del self._watched[key]

    def _check_right(self, job: Job, facts: Facts) -> None:
        """gone() unless the process is the caller's, or he may watch those of others."""
        try:
            self._host.right(job.owner, _watching(job.owner, facts), job.ruling)
        except AemError as error:
            if error.code is Code.NOT_FOUND:
                raise gone(facts.pid) from None
            raise

    def _ended(self, watched: _Watched, ending: Ending) -> None:
        reactor = self._host.reactor
        watched.ending = ending
        watched.times = (reactor.real_ns(), reactor.mono_ns())
        self._fire(watched, ending)

    def _fire(self, watched: _Watched, ending: Ending) -> None:
        jobs = list(watched.armed.values())
        watched.armed.clear()
        watched.told.update(job.id for job in jobs)
        encoded: dict[bool, bytes] = {}
        for job in jobs:
            known = _may_know(job, ending)
            if known not in encoded:
                encoded[known] = _event(watched, ending if known else _withheld(ending))
            self._host.fire(job, encoded[known])
            self._host.exhaust(job, "the process has ended")


def _withheld(ending: Ending) -> Ending:
    """What is left of it for a user who may no longer know of the process."""
    source = "it had changed its credentials, so how it ended is no longer for this user"
    return replace(ending, wait_status=None, reaped=False, source=source)


def _event(watched: _Watched, ending: Ending) -> bytes:
    real_ns, mono_ns = watched.times
    return encode(
        event_pb2.Event(
            type="exited",
            real_time_ns=real_ns,
            mono_time_ns=mono_ns,
            process=payload(watched.source.facts, ending),
        )
    )


def _may_know(job: Job, ending: Ending) -> bool:
    """Whether the process was still the caller's when it ended. Not known where it was reaped at once: then
    the status, if there is one, is what the kernel tells everybody (sources/pidfd.py).

    Nobody has asked for anything now, so a refusal is nobody's attempt, and the Host is not asked.
    """
    if ending.facts is None:
        return True
    try:
        right(job.owner, _watching(job.owner, ending.facts), job.ruling)
    except AemError:
        return False
    return True


def _watching(principal: Principal, facts: Facts) -> Act:
    others = [uid for uid in facts.uids if uid != principal.uid]
    uid = others[0] if others else principal.uid
    # Who gave its number has found it in his own pid namespace, or is in the daemon's, which sees all.
    owner = Owner(uid, facts.user_namespace, principal.owner.pid_namespace)
    return Act(what=f"watch process {facts.pid}", owner=owner, of="process", hidden=True)


def payload(facts: Facts, ending: Ending) -> process_pb2.ProcessEvent:
    """The event's data: who it was, and its wait status taken apart as the macros of wait(2) do."""
    told = process_pb2.ProcessEvent(
        pid=facts.pid,
        start_time_ticks=facts.start_time_ticks,
        uid=facts.uids[0],
        command=facts.command,
        knowledge=process_pb2.EXIT_KNOWLEDGE_UNKNOWN,
        reaped=ending.reaped,
        source=ending.source,
    )
    status = ending.wait_status
    if status is None:
        return told
    told.knowledge = process_pb2.EXIT_KNOWLEDGE_KNOWN
    told.signal = status & 0x7F
    if told.signal:
        told.signal_name = signal_name(told.signal)
        told.core_dumped = bool(status & 0x80)
    else:
        told.exit_status = status >> 8 & 0xFF
    return told


def signal_name(number: int) -> str:
    """SIGSEGV, SIGRTMIN+3; the number after SIG where it has no name."""
    if SIGNAL_RT_MIN < number < SIGNAL_RT_MAX:
        return f"SIGRTMIN+{number - SIGNAL_RT_MIN}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _watched(job: Job) -> _Watched:
    assert isinstance(job.data, _Watched)
    return job.data
