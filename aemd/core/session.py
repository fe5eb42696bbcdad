"""A session: one client's hold on the daemon, whichever stream it has at the moment, if any."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aemd.core.outbox import Outbox

if TYPE_CHECKING:
    from aemd.core.accounts import Allowance, Charge
    from aemd.core.binding import Binding
    from aemd.core.principal import Principal
    from aemd.core.tally import Sheet


@dataclass(frozen=True, slots=True)
class SessionStats:
    """What lists show of a session."""

    jobs: int
    delivered: int
    queued_bytes: int
    credit_events: int
    credit_bytes: int
    resumes: int


class Session(Outbox):
    """One client's hold on the daemon.

    `token` is what it comes back with; `generation` counts its streams from 1; `connected` (of Outbox): it
    has one now. `service` is a slot for whoever runs the stream.
    """

    __slots__ = (
        "account",
        "allowance",
        "bindings",
        "charge",
        "create_time_ns",
        "ended",
        "generation",
        "id",
        "label",
        "lapsing",
        "leases",
        "lost_ns",
        "next_binding",
        "principal",
        "reason",
        "sdk",
        "service",
        "sheet",
        "token",
        "token_before",
    )

    def __init__(
        self,
        session_id: int,
        principal: Principal,
        charge: Charge,
        sheet: Sheet,
        *,
        allowance: Allowance,
        token: bytes,
        label: str,
        sdk: str,
        ready_sessions: list[Session],
        create_time_ns: int,
    ) -> None:
        super().__init__(ready_sessions)  # type: ignore[arg-type]
        self.id = session_id
        self.principal = principal
        self.charge = charge
        self.account = charge.account
        self.allowance = allowance  # of its user; changes when the policy does
        self.sheet = sheet
        self.token = token
        self.token_before = b""
        self.label = label
        self.sdk = sdk
        self.create_time_ns = create_time_ns
        self.generation = 1
        self.ended = False
        self.reason = ""  # why it ended
        self.bindings: dict[int, Binding] = {}
        self.next_binding = 1
        self.leases: Counter[int] = Counter()  # of its jobs, nanoseconds -> how many
        self.lost_ns = 0  # when its stream was lost, CLOCK_MONOTONIC
        self.lapsing: list[tuple[int, int]] | None = None  # (lease, binding), shortest last
        self.service: object = None

    def __repr__(self) -> str:
        return f"<Session {self.id} uid {self.principal.uid} {'up' if self.connected else 'down'}>"

    @property
    def stats(self) -> SessionStats:
        """What lists show of it."""
        return SessionStats(
            jobs=len(self.bindings),
            delivered=self.delivered,
            queued_bytes=self.queued_bytes,
            credit_events=max(self.credit_events, 0),
            credit_bytes=max(self.credit_bytes, 0),
            resumes=self.generation - 1,
        )
