"""Sessions at rest: all that is known of them and their jobs, as plain values; the next daemon goes on.

A daemon that ends in order freezes its sessions and the next one thaws them: every session is one whose
stream is lost, with its token, its numbers and what waits or is in flight, byte for byte. Credit is not kept,
it begins at zero with each stream; nor are answers that were not sent: who asked asks again.

What a module needs to go on with a job is its own memento, opaque here. Where it has none nothing proves that
no event was missed in between, and the job gets a gap of unknown size.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, fields
from typing import Any

from aemd.core.accounts import ENTRY_BYTES, HISTORY
from aemd.core.entry import Entry, EntryState, Loss
from aemd.core.principal import Owner, Principal
from aemd.core.stats import Parked, Stats
from aemd.core.waiting import Waiting


@dataclass(frozen=True, slots=True)
class FrozenLoss:
    """What a gap says."""

    stage: int
    cause: int
    scope: str
    remedy: int
    unknown: bool


@dataclass(frozen=True, slots=True)
class FrozenEntry:
    """An event or a gap. `due_ns`: of what was given back with a delay, CLOCK_MONOTONIC."""

    first: int
    last: int
    state: int
    attempts: int
    fired_ns: int
    event: bytes
    key: bytes
    loss: FrozenLoss | None = None
    due_ns: int = 0


@dataclass(frozen=True, slots=True)
class FrozenBinding:
    """What waits for a client, and what it has."""

    id: int
    head: int
    sent: int
    shown: int
    unknown_to: int
    queue: list[FrozenEntry]
    unacked: list[FrozenEntry]
    behind: list[int]
    overdue: list[tuple[int, int, int]]
    stats: dict[str, Any]
    parked: list[dict[str, Any]]
    retried: list[int]  # last numbers of `unacked`: what was put aside before, and not delivered since


@dataclass(frozen=True, slots=True)
class FrozenJob:
    """A job of a session. `started`: it is to fire; `spent`: it has fired for the last time. `memento`: its
    module's, None where that has none.
    """

    id: int
    module: str
    params: bytes
    options: bytes
    label: str
    started: bool
    spent: bool
    reason: str
    create_time_ns: int
    epoch: int
    last_fire_ns: int
    memento: bytes | None
    binding: FrozenBinding


@dataclass(frozen=True, slots=True)
class FrozenReader:
    """A session's hold on a durable job. `start`: what lies before that it was never to have, of `epoch`."""

    job: int
    epoch: int
    start: int
    follows: bool
    cut: bool
    binding: FrozenBinding


@dataclass(frozen=True, slots=True)
class FrozenPrincipal:
    """Who a session belongs to."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    start_time_ticks: int
    rest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FrozenSession:
    """A session. `lost_ns`: when its stream was lost, CLOCK_MONOTONIC."""

    id: int
    principal: FrozenPrincipal
    token: bytes
    token_before: bytes
    label: str
    sdk: str
    create_time_ns: int
    generation: int
    next_binding: int
    lost_ns: int
    jobs: list[FrozenJob]
    readers: list[FrozenReader]


_OWNER = tuple(field.name for field in fields(Owner) if field.name != "uid")
_REST = tuple(
    field.name
    for field in fields(Principal)
    if field.name not in ("owner", "gid", "groups", "pid", "start_time_ticks")
)
_APART = ("parked_list", "lost_at", "shown", "retried")  # those of Stats that are no plain values
_STATS = tuple(field.name for field in fields(Stats) if field.name not in _APART)
_NO_STATS: dict[str, Any] = {name: getattr(Stats(), name) for name in _STATS}
_NO_STATS |= {"lost_at": [], "shown": [0, 0, 0]}


def freeze_principal(principal: Principal) -> FrozenPrincipal:
    """As plain values."""
    rest = {name: getattr(principal, name) for name in _REST}
    rest |= {name: getattr(principal.owner, name) for name in _OWNER}
    return FrozenPrincipal(
        principal.uid, principal.gid, principal.groups, principal.pid, principal.start_time_ticks, rest
    )


def thaw_principal(frozen: FrozenPrincipal) -> Principal:
    """As it was."""
    known = frozen.rest  # of another version, which may have known less
    owner = Owner(frozen.uid, **{name: known[name] for name in _OWNER if name in known})
    rest = {name: known[name] for name in _REST if name in known}
    return Principal(owner, frozen.gid, tuple(frozen.groups), frozen.pid, frozen.start_time_ticks, **rest)


def freeze_binding(binding: Waiting) -> FrozenBinding:
    """What waits and what is in flight."""
    due = {id(entry): due_ns for due_ns, _, entry in binding.delayed or ()}
    stats = binding.stats or Stats()
    return FrozenBinding(
        id=binding.id,
        head=binding.head,
        sent=binding.sent,
        shown=binding.shown,
        unknown_to=binding.unknown_to,
        queue=[_freeze_entry(entry, 0) for entry in binding.queue or ()],
        unacked=[_freeze_entry(entry, due.get(id(entry), 0)) for entry in (binding.unacked or {}).values()],
        behind=sorted(binding.behind or ()),
        overdue=list(binding.overdue or ()),
        stats={
            **{name: getattr(stats, name) for name in _STATS},
            "lost_at": list(stats.lost_at),
            "shown": list(stats.shown),
        },
        parked=[_freeze_parked(parked) for parked in stats.parked_list],
        retried=sorted(entry.last for entry in stats.undelivered()),
    )


def empty_binding(number: int) -> FrozenBinding:
    """One for which nothing waits, and of which nothing is in flight."""
    return FrozenBinding(number, 0, 0, 0, 0, [], [], [], [], _NO_STATS, [], [])


def thaw_binding(binding: Waiting, frozen: FrozenBinding) -> None:
    """Put everything back where it was, and charge it."""
    binding.head, binding.sent, binding.shown = frozen.head, frozen.sent, frozen.shown
    binding.unknown_to = frozen.unknown_to
    binding.behind = set(frozen.behind) or None
    binding.overdue = [(first, last, count) for first, last, count in frozen.overdue] or None
    _thaw_stats(binding, frozen)
    for each in frozen.queue:
        entry = _thaw_entry(each)
        binding.queue = binding.queue if binding.queue is not None else deque()
        binding.queue.append(entry)
        if entry.loss is not None:
            binding.gaps += 1
        else:
            binding._note_key(entry)
            _count(binding, entry, waits=True)
    for each in frozen.unacked:
        entry = _thaw_entry(each)
        binding.unacked = binding.unacked if binding.unacked is not None else OrderedDict()
        binding.unacked[entry.last] = entry
        _thaw_again(binding, entry, each.due_ns)
        if entry.loss is not None:
            binding.gaps_unacked += 1
        else:
            binding.held_bytes += len(entry.event)
            _count(binding, entry, waits=entry.state is not EntryState.INFLIGHT)
    if frozen.retried and binding.stats is not None and binding.unacked is not None:
        binding.stats.retried = {binding.unacked[seq] for seq in frozen.retried}


def _thaw_again(binding: Waiting, entry: Entry, due_ns: int) -> None:
    if entry.state is EntryState.AGAIN:
        binding.again = binding.again or []
        binding.again.append((entry.last, entry))  # in order, so it is a heap
    elif entry.state is EntryState.DELAYED:
        binding.delayed = binding.delayed or []
        binding.delayed.append((due_ns, entry.last, entry))
        binding.delayed.sort(key=lambda item: item[:2])


def _count(binding: Waiting, entry: Entry, *, waits: bool) -> None:
    size = len(entry.event)
    binding.depth += 1
    binding.bytes += size
    session = binding.session
    if waits:
        session.queued_bytes += size
    session.account.grant(size + ENTRY_BYTES, session.allowance)  # a lower quota takes nothing away
    session.account.bytes_free -= size + ENTRY_BYTES


def _thaw_stats(binding: Waiting, frozen: FrozenBinding) -> None:
    stats = Stats(**{name: frozen.stats[name] for name in _STATS})
    stats.lost_at = tuple(frozen.stats["lost_at"])
    head, acknowledged, lost = frozen.stats["shown"]
    stats.shown = (head, acknowledged, lost)
    account, allowance = binding.session.account, binding.session.allowance
    for fact in frozen.parked:
        parked = _thaw_parked(fact)
        if account.try_charge(HISTORY, allowance, parked.cost):
            stats.parked_list.append(parked)
    if frozen.head or frozen.sent:
        binding.stats = stats


def _freeze_entry(entry: Entry, due_ns: int) -> FrozenEntry:
    return FrozenEntry(
        entry.first,
        entry.last,
        int(entry.state),
        entry.attempts,
        entry.fired_ns,
        entry.event,
        entry.key,
        _freeze_loss(entry.loss),
        due_ns,
    )


def _thaw_entry(frozen: FrozenEntry) -> Entry:
    entry = Entry(frozen.first, frozen.last, frozen.event, frozen.key, frozen.fired_ns)
    entry.state = EntryState(frozen.state)
    entry.attempts = frozen.attempts
    entry.loss = _thaw_loss(frozen.loss)
    return entry


def _freeze_loss(loss: Loss | None) -> FrozenLoss | None:
    if loss is None:
        return None
    return FrozenLoss(loss.stage, loss.cause, loss.scope, loss.remedy, loss.unknown)


def _thaw_loss(frozen: FrozenLoss | None) -> Loss | None:
    if frozen is None:
        return None
    return Loss(frozen.stage, frozen.cause, frozen.scope, frozen.remedy, frozen.unknown)  # type: ignore[arg-type]


def _freeze_parked(parked: Parked) -> dict[str, Any]:
    fact = parked._asdict()
    loss = _freeze_loss(parked.loss)
    fact["loss"] = None if loss is None else [loss.stage, loss.cause, loss.scope, loss.remedy, loss.unknown]
    return fact


def _thaw_parked(fact: dict[str, Any]) -> Parked:
    loss = fact["loss"]
    return Parked(**{**fact, "loss": None if loss is None else Loss(*loss)})
