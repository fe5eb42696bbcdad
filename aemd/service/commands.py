"""Command jobs: durable jobs whose events the daemon itself deals with, by running their owner's command.

The daemon answers for such a job as a client would. It takes an entry, or all there are (mode DIRTY), runs
the command for it, and acknowledges when that exits with 0. Otherwise the entry comes again after a backoff,
or is parked after as many attempts as the job's options say, with what became of the last one. There is one
run of a job at a time, so events are dealt with in order, and each at least once: a run that did not come to
its end with its daemon is made again.

A command is run while its job is started. A job that is stopped, closed (by policy, for want of its module)
or gone has its run ended, and what it was run for is taken again when the job is started. Only a shutdown
waits for the run, as for any handler.

What cannot be begun now (the quota `children` is used up, there is no process to be had) waits and is tried
again; that is no failure of the command.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from aemd.core.accounts import Charge
from aemd.core.engine import Engine
from aemd.core.entry import Entry
from aemd.core.errors import AemError
from aemd.core.job import Job, JobState
from aemd.core.limits import MS, SECOND
from aemd.core.outbox import Outbox
from aemd.core.principal import Principal
from aemd.core.reader import Reader
from aemd.deputy.orders import Ended, Start
from aemd.deputy.protocol import BECOMING
from aemd.peer.runner import Runner, Watch
from aemd.service import log
from aemd.service.conductor import Conductor
from aemd.service.execution import DIRTY_BYTES_MAX, DIRTY_EVENTS_MAX, Execution
from aemd.service.feed import dumps, ending, variables
from aemd.service.rows import entry_row
from aemd.sources.reactor import Timer
from aemd.v1 import job_pb2

RUNS_MAX = 512  # at once, of all users; each has his quota besides
GRACE_NS = 5 * SECOND  # between SIGTERM and SIGKILL of a run that is not wanted any more
RUNNER_GONE = "the process that runs commands has ended"
_RUNS = (JobState.ARMED, JobState.DEGRADED, JobState.DRAINING)
_OF_THE_COMMAND = ("execve", "chdir")  # who refuses there refuses the command, not the daemon


class Result(StrEnum):
    """How a run ended, as metrics have it."""

    DONE = "done"
    FAILED = "failed"
    LATE = "late"
    NOT_EXECUTED = "not-executed"
    ENDED = "ended"  # by us, for it was not wanted any more
    LOST = "lost"  # for want of a process, which is no fault of the command


@dataclass(slots=True)
class _Run:
    """One run, from when it was ordered."""

    number: int
    entries: list[Entry]
    epoch: int
    charge: Charge
    begin_mono_ns: int
    begin_real_ns: int
    pid: int = 0
    ended: bool = False  # by us


@dataclass(slots=True, eq=False)
class _Command:
    """A command job."""

    job: Job
    execution: Execution
    reader: Reader
    run: _Run | None = None
    timer: Timer | None = None
    until_real_ns: int = 0
    waiting_for: str = ""
    failures_in_a_row: int = 0
    state: job_pb2.ExecState = field(
        default_factory=job_pb2.ExecState
    )  # what is counted, and of the last run


class Commands:
    """The command jobs of one daemon."""

    def __init__(self, conductor: Conductor, runner: Runner) -> None:
        self._conductor = conductor
        self._engine: Engine = conductor.engine
        self._runner = runner
        self._clock = conductor.reactor.clock("monotonic")
        self._ready: list[Outbox] = []
        self._commands: dict[Job, _Command] = {}
        self._running: dict[_Command, None] = {}
        self._draining = False

    # For durable jobs.

    def add(self, job: Job, execution: Execution, *, known: bool) -> None:
        """Run this command for the events of `job`; AemError if its owner may have no more jobs. `known`: it
        was there before, and is not refused.
        """
        reader = self._engine.stand_in(job, self._ready, known=known)
        command = reader.session.service = self._commands[job] = _Command(job, execution, reader)
        command.reader.session.mark_ready()

    def execution_of(self, job: Job) -> Execution | None:
        """What a job is to run; None if it is no command job."""
        command = self._commands.get(job)
        return command.execution if command is not None else None

    def hurry(self, job: Job) -> None:
        """Somebody has asked for it: do not wait any longer."""
        command = self._commands.get(job)
        if command is not None:
            self._wait_no_more(command)

    def state_of(self, job: Job, viewer: Principal) -> job_pb2.ExecState | None:
        """How it gets on; None if it is no command job."""
        command = self._commands.get(job)
        if command is None:
            return None
        state = job_pb2.ExecState()
        state.CopyFrom(command.state)
        state.failed_in_a_row = command.failures_in_a_row
        run = command.run
        if run is not None:
            state.phase = job_pb2.EXEC_PHASE_RUNNING
            state.pid = 0 if viewer.owner.pid_namespace else run.pid
            state.since_time_ns = run.begin_real_ns
        elif job.state not in _RUNS:
            state.phase = job_pb2.EXEC_PHASE_HALTED
        elif command.timer is not None:
            state.phase = job_pb2.EXEC_PHASE_WAITING
            state.until_time_ns = command.until_real_ns
            state.waiting_for = command.waiting_for
        else:
            state.phase = job_pb2.EXEC_PHASE_IDLE
        return state

    # For the daemon.

    def flush(self) -> bool:
        """Begin and end what is to be begun and ended; False if there was nothing to look at."""
        ready = self._ready.copy()
        self._ready.clear()
        for session in ready:
            session.ready = False
            command = session.service  # type: ignore[attr-defined]
            self._look(command)
        return bool(ready)

    def drain(self, grace_ns: int) -> None:
        """The daemon ends: begin nothing more, and end what runs, at the latest after `grace_ns`."""
        self._draining = True
        for command in list(self._running):
            self._end_run(command, grace_ns)

    @property
    def idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    def close(self) -> None:
        """The daemon ends: kill what still runs."""
        self._draining = True
        self._runner.close()
        for command in list(self._running):
            self._over(command)

    # Runs.

    def _look(self, command: _Command) -> None:
        job, run = command.job, command.run
        if job.state is JobState.GONE:
            self._commands.pop(job, None)
        if job.state not in _RUNS:
            self._wait_no_more(command)
            command.failures_in_a_row = 0
            if run is not None and job.state is not JobState.CLOSING:
                self._end_run(command, GRACE_NS)
        elif run is None and command.timer is None and not self._draining:
            self._begin(command)

    def _begin(self, command: _Command) -> None:
        if command.reader.next_entry() is None:
            return
        if len(self._running) >= RUNS_MAX:
            self._begin_later(command, f"{RUNS_MAX} commands of all users run, and no more may")
            return
        try:
            charge = self._engine.accounts.charge(command.job.owner, "children")
        except AemError as error:
            self._begin_later(command, error.message)
            return
        dirty = command.execution.dirty
        most = (DIRTY_EVENTS_MAX, DIRTY_BYTES_MAX) if dirty else (1, 1)
        entries = self._engine.take(command.reader, *most)
        now = self._conductor.now()
        run = command.run = _Run(
            self._runner.next_number(), entries, command.reader.epoch, charge, now.mono_ns, now.real_ns
        )
        self._running[command] = None
        watch = Watch(partial(self._begun, command), partial(self._ended, command, run))
        try:
            self._runner.start(*self._order(command, run), watch)
        except OSError as error:
            self._over(command)
            self._not_begun(command, entries, f"no process can be started: {error.strerror or error}")
        except Exception:  # a module has made something of it that is no event
            log.get().exception(
                "module failed", **{log.MODULE: command.job.traits.name, log.JOB: command.job.id}
            )
            self._over(command)
            self._fail(
                command, run, f"module {command.job.traits.name} gave what cannot be shown to a command"
            )
        else:
            command.state.runs += 1

    def _order(self, command: _Command, run: _Run) -> tuple[Start, bytes]:
        job, execution = command.job, command.execution
        assert job.durable is not None
        rows = [entry_row(job, run.epoch, entry) for entry in run.entries]
        facts = variables(rows[-1]) | {"AEM_NAME": job.durable.name, "AEM_EVENTS": str(len(rows))}
        owner = job.owner
        order = Start(
            number=run.number,
            uid=owner.uid,
            gid=owner.gid,
            groups=list(owner.groups),
            capable=owner.administrator,
            command=list(execution.command),
            environment={**execution.environment, **facts},
            directory=execution.directory,
            timeout_ms=execution.timeout_ns // MS,
            place=f"job-{job.id}",
            name=f"aemd-job-{job.durable.name}",
        )
        return order, "".join(f"{dumps(row)}\n" for row in rows).encode("utf-8", "backslashreplace")

    def _not_begun(self, command: _Command, entries: list[Entry], why: str) -> None:
        self._engine.give_back(command.reader, entries)
        self._begin_later(command, why)

    def _begin_later(self, command: _Command, why: str) -> None:
        if command.job.state in _RUNS:
            self._wait(command, command.execution.backoff_min_ns, why)

    def _begun(self, command: _Command, pid: int) -> None:
        if command.run is not None:
            command.run.pid = pid

    def _end_run(self, command: _Command, grace_ns: int) -> None:
        run = command.run
        if run is not None and not run.ended:
            run.ended = True
            self._runner.end(run.number, grace_ns // MS)

    def _over(self, command: _Command) -> None:
        run, command.run = command.run, None
        self._running.pop(command, None)
        if run is not None:
            run.charge.refund()

    def _ended(self, command: _Command, run: _Run, ended: Ended | None) -> None:
        self._over(command)
        result, words = _judge(command.execution, ended)
        if run.ended and result is not Result.DONE:
            result = Result.ENDED
        self._note(command, run, ended, words)
        reader, now = command.reader, self._conductor.now()
        reader.tally.runs[result] += 1
        if result is Result.DONE:
            command.failures_in_a_row = 0
            for entry in run.entries:
                self._engine.complete(
                    reader.session, reader.id, run.epoch, entry.last, error=None, reply=None, now=now
                )
        elif result is Result.ENDED:
            self._engine.give_back(reader, run.entries)
        elif result is Result.LOST:
            self._not_begun(command, run.entries, words)
        else:
            self._fail(command, run, words)
        self._conductor.settle()
        reader.session.mark_ready()

    def _fail(self, command: _Command, run: _Run, result: str) -> None:
        job, reader = command.job, command.reader
        command.failures_in_a_row += 1
        command.state.failures += 1
        log.get().warning("command failed", **{log.JOB: job.id, log.UID: job.owner.uid, log.REASON: result})
        for entry in run.entries:
            self._engine.nack(
                reader.session,
                reader.id,
                run.epoch,
                entry.last,
                delay_ns=0,
                park=False,
                reason=result,
                now=self._conductor.now(),
            )
        if job.state in _RUNS:
            self._wait(command, command.execution.backoff_ns(command.failures_in_a_row), result)

    def _note(self, command: _Command, run: _Run, ended: Ended | None, result: str) -> None:
        now, state = self._conductor.now(), command.state
        code = os.waitstatus_to_exitcode(ended.status) if ended is not None and not ended.error else None
        state.last_result = result
        state.last_status = code if code is not None and code >= 0 else -1
        state.last_signal = -code if code is not None and code < 0 else 0
        state.last_time_ns = now.real_ns
        state.last_duration_ns = now.mono_ns - run.begin_mono_ns

    # Waiting.

    def _wait(self, command: _Command, delay_ns: int, why: str) -> None:
        now = self._conductor.now()
        command.waiting_for = why
        command.until_real_ns = now.real_ns + delay_ns
        command.timer = self._clock.call_at(now.mono_ns + delay_ns, lambda _now: self._waited(command))

    def _waited(self, command: _Command) -> None:
        command.timer = None
        command.reader.session.mark_ready()

    def _wait_no_more(self, command: _Command) -> None:
        if command.timer is not None:
            command.timer.cancel()
            self._waited(command)


def _judge(execution: Execution, ended: Ended | None) -> tuple[Result, str]:
    """What became of a run, and that in words."""
    if ended is None:
        return Result.LOST, RUNNER_GONE
    if ended.call == BECOMING:
        return Result.LOST, "not begun: the daemon cannot act as the job's owner"
    if ended.error:
        name = errno.errorcode.get(ended.error, str(ended.error))
        why = f"{os.strerror(ended.error)} ({name})"
        if ended.call not in _OF_THE_COMMAND:
            return Result.LOST, f"not begun: {ended.call}: {why}"
        what = execution.command[0] if ended.call == "execve" else execution.directory
        return Result.NOT_EXECUTED, f"not executed: {what}: {why}"
    if ended.late:
        return Result.LATE, f"ended after its time limit of {execution.timeout_ns / SECOND:g}s"
    code = os.waitstatus_to_exitcode(ended.status)
    if ended.told:
        how = "killed" if code == -signal.SIGKILL else "ended"
        return Result.ENDED, f"{how}: its job was stopped, or the daemon"
    return Result.FAILED if code else Result.DONE, ending(code)
