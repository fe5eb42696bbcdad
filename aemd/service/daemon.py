"""The daemon: everything put together, and its life from the first turn to the last.

The end of each turn is one place (`_end_turn`): what is due happens, effects are carried out, what is ready
is sent. Nothing else decides when. Signals only set things in motion that the turns then finish.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from aemd import __version__
from aemd.core.accounts import Accounts
from aemd.core.engine import Engine
from aemd.core.errors import AemError
from aemd.core.job import Job
from aemd.core.limits import Limits
from aemd.core.now import Now
from aemd.core.pool import Pool
from aemd.core.principal import Owner, Principal
from aemd.core.quota import Quotas
from aemd.core.registrations import Teller
from aemd.loop.loop import Fault, Loop
from aemd.peer.accept import SocketTaken, UnfitListenerError
from aemd.peer.deputy import Deputy
from aemd.peer.looker import RemoteLooker
from aemd.peer.office import Office
from aemd.peer.peers import Peers
from aemd.peer.runner import Runner
from aemd.peer.stream import Stream, StreamHandler
from aemd.service import log
from aemd.service.admin import AdminService
from aemd.service.audit import Audit
from aemd.service.authority import Authority
from aemd.service.commands import Commands
from aemd.service.conductor import Conductor
from aemd.service.config import Config
from aemd.service.configuration import interpret
from aemd.service.descriptors import Descriptors, raise_limit
from aemd.service.durables import Durables
from aemd.service.files import ConfigurationError
from aemd.service.handover import Handover
from aemd.service.host import ModuleHost
from aemd.service.intake import Intake
from aemd.service.jobs import JobService
from aemd.service.lasting import Lasting
from aemd.service.modules import ModuleService
from aemd.service.notify import Notifier, take_descriptors, take_notifier
from aemd.service.openings import Openings
from aemd.service.pace import Shares
from aemd.service.registrations import NAME as REGISTRATIONS
from aemd.service.registrations import Registrations
from aemd.service.registry import Registry
from aemd.service.reload import Reload, read_sources, told
from aemd.service.sessions import Sessions
from aemd.service.standing import StandingJobs
from aemd.service.unary import UnaryCall, Unimplemented
from aemd.service.watchdog import Watchdog
from aemd.sources import looks
from aemd.sources.reactor import Timer

SESSION_METHOD = "/aem.v1.EventService/Session"
ROUNDS_PER_TURN = 8  # of effects and output that cause each other; the rest has time until the next turn
TOKEN_BYTES = 32
TAKE_UP_SECONDS = 30  # for one session of the daemon before; it has 260,000 jobs at most
STORE_FILE = "aemd.db"
LISTENER = "listener"  # FileDescriptorName= of the public socket in its socket unit


class StartError(Exception):
    """The daemon cannot start; the message says why."""


class AlreadyRunningError(StartError):
    """Another daemon serves this socket; the message says which."""


class Daemon:
    """One daemon. Its parts are public for the services and for nobody else.

    `notifier`: the service manager that started it. `given`: the public listener, if that one passed it on.
    `left`: by name, what it has kept since the daemon before.
    """

    def __init__(
        self,
        config: Config,
        limits: Limits,
        quotas: Quotas | None = None,
        *,
        notifier: Notifier | None = None,
        given: socket.socket | None = None,
        left: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.config = config
        self.limits = limits
        self.start_time_ns = time.time_ns()
        self.draining = False
        self.loop = Loop(on_fault=_fault)
        self.authority = Authority(Audit(self.loop.mono_ns))
        self.accounts = Accounts(
            quotas or self.authority,
            queue_pool=Pool(lambda: self.limits.queue_pool_bytes, key="limits.queue_pool_bytes"),
            fault=_account_fault,
        )
        self.engine = Engine(
            limits, new_token=lambda: secrets.token_bytes(TOKEN_BYTES), accounts=self.accounts
        )
        self.descriptors = Descriptors(
            limit=raise_limit(),
            reserve=limits.descriptors_reserve,
            others=lambda: self.peers.descriptors + self.deputy.descriptors + self.runner.descriptors,
            accounts=self.accounts,
        )
        self.office = Office(self.loop, config.deputy) if config.deputy else None
        self.looker = RemoteLooker(self.office) if self.office is not None else None
        looks.install(self.looker)
        self.deputy = Deputy(
            self.loop,
            self.accounts,
            starter=self.office,
            pidfd_of=lambda principal: self.peers.pidfd_of(principal),
            limit_ns=limits.deputy_ns,
        )
        self.notifier = notifier or Notifier()
        kept = [(name, fd) for name, fd in left if name != REGISTRATIONS]
        self.lasting = Lasting(self.notifier, self.loop, kept, remove=self.deputy.remove_left)
        openings = Openings(self.deputy, self.lasting)
        self.host = ModuleHost(
            reactor=self.loop,
            limits=limits,
            engine=self.engine,
            descriptors=self.descriptors,
            authority=self.authority,
            openings=openings,
            lasting=self.lasting,
        )
        self.registry = Registry(self.host)
        self.conductor = Conductor(
            engine=self.engine,
            reactor=self.loop,
            limits=limits,
            descriptors=self.descriptors,
            registry=self.registry,
            authority=self.authority,
            openings=openings,
            lasting=self.lasting,
        )
        self.loop.after_wake(self._begin_turn)
        self.loop.before_sleep(self._end_turn)  # before the link's hook, which flushes what this one sends
        self.peers = Peers(
            self.loop,
            limits,
            socket_path=os.fsencode(config.socket),
            public=not config.user,
            open_stream=self.open_stream,
            process_gone=self.process_gone,
            accounts=self.accounts,
            given=given,
            before_sending=lambda: self.registrations.commit(),
            starter=self.office,
            administrator=config.uid,
        )
        self.watchdog = Watchdog(
            self.loop, self.notifier, self.peers, listening=lambda: self.peers.listener in self.loop
        )
        self.shares = Shares(self.loop, limits.turn_ns)
        self.intake = Intake(self.accounts, self.loop, self.shares)
        self.runners_office = Office(self.loop, config.runner) if config.runner else None
        self.runner = Runner(self.loop, starter=self.runners_office)
        self.commands = Commands(self.conductor, self.runner)
        self.durables = Durables(
            self.conductor,
            os.path.join(config.state_dir, STORE_FILE),
            owner=Owner(config.uid),
            commands=self.commands,
        )
        standing = StandingJobs(self.durables, self.conductor, administrator=config.uid)
        self.reload = Reload(config, limits, self.conductor, standing)
        self.sessions = Sessions(self.conductor, self.peers, self.shares, self.intake, self.durables)
        self.registrations = Registrations(
            self.engine,
            self.notifier,
            [fd for name, fd in left if name == REGISTRATIONS],
            Teller(self._is_started, self.conductor.anchor),
        )
        self.handover = Handover(
            self.conductor, self.durables, self.lasting, self.registrations, config.state_dir
        )
        self.methods = {
            **JobService(self.conductor, self.durables).methods(),
            **ModuleService(self.conductor).methods(),
            **AdminService(self).methods(),
        }
        self.calls: Counter[str] = Counter()  # by method
        self._late = False
        self._handed_over = False
        self._due_ns: int | None = None
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Load the modules; from here on the loop may turn."""
        self._begin_turn()
        self.registry.load_all()
        try:
            self.reload.begin()
        except ConfigurationError as error:
            raise StartError(told(error)) from None
        self.durables.begin(self.handover.read())
        self.registrations.open()
        self.handover.take_up(self.sessions.hold_absent, lambda: self.notifier.busy(TAKE_UP_SECONDS))
        self.reload.begin_jobs()  # behind what was there before

    def run(self) -> None:
        """Serve until a signal, and end in order."""
        self.begin()
        try:
            self.peers.start()
        except SocketTaken as error:
            raise AlreadyRunningError(str(error)) from None
        except UnfitListenerError as error:
            raise StartError(str(error)) from None
        except OSError as error:
            what = os.fsdecode(error.filename) if error.filename else self.config.socket
            raise StartError(f"{what}: {error.strerror}") from error
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self._terminate)
        self.loop.on_signal(signal.SIGHUP, self._hang_up)
        self.watchdog.start(self._tried)
        gc.freeze()  # what is there now stays, and need not be looked at again
        log.get().info("serving", **{log.SOCKET: self.config.socket, log.VERSION: __version__})
        try:
            self.loop.run()
        finally:
            self.end()
        log.get().info("ended", **{log.SOCKET: self.config.socket})

    def _tried(self) -> None:
        """A call has gone the whole way through a front and back."""
        self.notifier.ready(f"serving {self.config.socket}")

    # Streams.

    def open_stream(self, stream: Stream) -> StreamHandler:
        """The handler of a new RPC."""
        if stream.method == SESSION_METHOD:
            self.calls[stream.method] += 1
            return self.sessions.handler(stream)
        called = self.methods.get(stream.method)
        if called is None:
            self.calls["unknown"] += 1  # their names are the clients' own
            return Unimplemented(stream)
        self.calls[stream.method] += 1
        return UnaryCall(stream, called, run=partial(self.intake.run, stream.principal))

    def process_gone(self, principal: Principal) -> None:
        """A client's process has ended."""
        self.engine.end_process(principal.pid, principal.start_time_ticks, self.conductor.now())
        self.conductor.settle()

    # Turns.

    def _begin_turn(self) -> None:
        self.engine.now = Now(self.loop.mono_ns(), self.loop.real_ns())

    def _is_started(self, job: Job) -> bool:
        return self.handover.is_started(job) or job in self.sessions.stopped

    def _end_turn(self) -> None:
        due_ns = self.engine.next_deadline_ns()
        if due_ns is not None and due_ns <= self.loop.mono_ns():
            self.engine.tick(self.conductor.now())
        for _ in range(ROUNDS_PER_TURN):
            self.conductor.settle()
            if not (self.sessions.flush() | self.commands.flush()):
                break
        else:
            self.loop.defer(_nothing)  # the hooks run once more
        self.durables.keep()
        self.registrations.commit()
        self.lasting.shelf.flush()
        idle = self.draining and self.commands.idle and self.sessions.idle(late=self._late)
        if idle and not self._handed_over:
            self._stop_soon()
        self._set_timer()

    def _set_timer(self) -> None:
        due_ns = self.engine.next_deadline_ns()
        if due_ns == self._due_ns and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_ns = due_ns
        if due_ns is not None:
            self._timer = self.loop.clock("monotonic").call_at(due_ns, self._due)

    def _due(self, _now_ns: int) -> None:
        self._timer = None  # the end of this turn does what is due

    # The end.

    def _terminate(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.draining:
            log.get().warning("ending at once", **{log.SIGNAL: name})
            self.loop.stop()
            return
        log.get().info("ending", **{log.SIGNAL: name})
        self.draining = True
        self.watchdog.close()
        self.notifier.stopping("ending, sessions have been told")
        self.peers.stop_accepting()
        self.sessions.drain(f"the daemon ends ({name})", self.limits.drain_ns)
        self.commands.drain(self.limits.drain_ns)
        clock = self.loop.clock("monotonic")
        clock.call_at(clock.now_ns() + self.limits.settle_ns, self._settle_no_more)
        clock.call_at(clock.now_ns() + self.limits.drain_ns, self._drained)

    def _settle_no_more(self, _now_ns: int) -> None:
        self._late = True  # the end of this turn looks

    def _drained(self, _now_ns: int) -> None:
        if not self._handed_over:
            self._stop_soon()

    def _stop_soon(self) -> None:
        """Nothing is waited for any more: hand the sessions over, and send what there is. The fronts come
        next.
        """
        self.conductor.settle()
        self._hand_over()
        self.peers.finish(self.loop.stop)

    def _hand_over(self) -> None:
        self._handed_over = True
        self.registrations.commit()
        self.registrations.close()  # jobs that end from here on are gone on with
        self.handover.write(self.sessions.stopped)
        self.sessions.leave()

    def _hang_up(self, _number: int) -> None:
        self.notifier.reloading(self.loop.mono_ns())
        try:
            self.reload.reload()
        except AemError:
            pass  # it is logged, and stands in the status
        self.notifier.ready()

    def end(self) -> None:
        """End what is left, and give everything back."""
        if self.draining and not self._handed_over:
            self._hand_over()
        self.registrations.close()
        self.sessions.leave()
        self.engine.end_all("the daemon ends", self.conductor.now())  # those whose clients are away, too
        self.conductor.settle()
        self.authority.audit.close()
        self.commands.close()
        self.durables.close()
        self.registry.close()
        self.lasting.close()
        self.watchdog.close()
        self.deputy.close()
        self.peers.close()
        if self.office is not None and self.looker is not None:
            looks.install(None)
            self.looker.close()
            self.office.close()
        if self.runners_office is not None:
            self.runners_office.close()
        self.loop.close()


def serve(config: Config) -> None:
    """Run a daemon until it is told to end; StartError if it cannot."""
    log.configure(config.log_level or log.LEVEL_DEFAULT)
    try:
        configuration = interpret(read_sources(config))
    except ConfigurationError as error:
        raise StartError(told(error)) from None
    log.configure(config.log_level or configuration.log_level or log.LEVEL_DEFAULT)
    faulthandler.enable()  # what it did when the watchdog's SIGABRT came
    notifier = take_notifier(os.environ)
    given, left = _take_descriptors()
    try:
        daemon = Daemon(config, configuration.limits, notifier=notifier, given=given, left=left)
    except AemError as error:  # nobody looks for it
        raise StartError(f"{config.deputy}: {error.message}") from None
    daemon.run()


def _take_descriptors() -> tuple[socket.socket | None, list[tuple[str, int]]]:
    """The public listener, if the service manager has made it, and by name what it has kept."""
    try:
        given = take_descriptors(os.environ)
    except ValueError as error:
        raise StartError(str(error)) from None
    listeners = [fd for name, fd in given if name == LISTENER]
    if len(listeners) > 1:
        raise StartError(f"{len(listeners)} listeners were passed on; one ListenStream= is served")
    left = [(name, fd) for name, fd in given if name != LISTENER]
    return socket.socket(fileno=listeners[0]) if listeners else None, left


def _fault(fault: Fault) -> None:
    """A callback of the loop raised: nothing of it is trusted any more, everybody else goes on."""
    name = getattr(fault.callback, "__qualname__", repr(fault.callback))
    log.get().error("fault", **{log.METHOD: name}, exc_info=fault.exception)


def _account_fault(what: str) -> None:
    """Something was charged and not refunded, or the other way round: a bug, of which nobody else suffers."""
    log.get().error("account fault", **{log.REASON: what})


def _nothing() -> None:
    """Deferred, so that a turn ends once more."""
