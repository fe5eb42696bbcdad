"""Channels belong to users, payloads reach whoever listens, and the bytes are protobuf's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.core.accounts import Accounts, Charge
from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal
from aemd.core.quota import DefaultQuotas, Quota
from aemd.core.right import Act, right
from aemd.modules.params import parse_values
from aemd.modules.user import User
from aemd.v1 import event_pb2, job_pb2, user_pb2

REAL_NS, MONO_NS = 1_780_000_000_123_456_789, 987_654_321


def who(
    uid: int,
    *,
    pid: int = 77,
    administrator: bool = False,
    user_namespace: int = 0,
    pid_namespace: int = 0,
    own_pid: int = 0,
) -> Principal:
    owner = Owner(uid, user_namespace, pid_namespace)
    return Principal(owner, uid, (), pid, 0, administrator, own_pid=own_pid)


@dataclass(eq=False)
class Job:
    id: int
    owner: Principal
    values: dict[str, object]
    label: str = ""
    data: object = None
    ruling: Ruling | None = None


@dataclass
class Host:
    """Writes down what is fired, in calls of fire() and fire_many()."""

    limits: Limits = field(default_factory=Limits)
    fired: list[tuple[int, bytes]] = field(default_factory=list)
    reactor: object = field(
        default_factory=lambda: SimpleNamespace(real_ns=lambda: REAL_NS, mono_ns=lambda: MONO_NS)
    )

    accounts: Accounts = field(default_factory=Accounts)

    def right(self, principal: Principal, act: Act, ruling: Ruling | None = None) -> None:
        right(principal, act, ruling)

    def hold(self, job: Job, resource: str, count: int = 1) -> Charge:
        return self.accounts.charge(job.owner, resource, count)

    def afford(self, principal: Principal, events: int) -> None:
        self.accounts.afford(principal, events, MONO_NS)

    def fire(self, job: Job, event: bytes) -> None:
        self.fired.append((job.id, event))

    def fire_many(self, job: Job, events: list[bytes]) -> None:
        self.fired.extend((job.id, event) for event in events)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def user(host: Host) -> User:
    return User(host)


def listen(user: User, number: int, owner: Principal, channel: str, **values: object) -> Job:
    job = Job(number, owner, {"channel": channel, **values})
    user.open(job)
    user.start(job)
    return job


@given(
    st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=60),
    st.lists(st.one_of(st.binary(max_size=300), st.just(b"x" * 20_000)), min_size=1, max_size=5),
    st.sampled_from([0, 1, 127, 128, 1_000, (1 << 32) - 2]),
    st.sampled_from([0, 1, 128, 4_194_304]),
)
def test_events_are_byte_for_byte_what_protobuf_gives(channel, payloads, uid, pid):
    host = Host()
    user = User(host)
    listen(user, 1, who(uid), channel)
    assert user.raise_events(who(uid, pid=pid), channel, payloads) == 1
    expected = [
        event_pb2.Event(
            type="raised",
            real_time_ns=REAL_NS,
            mono_time_ns=MONO_NS,
            user=user_pb2.UserEvent(channel=channel, payload=payload, sender_uid=uid, sender_pid=pid),
        ).SerializeToString()
        for payload in payloads
    ]
    assert [event for _, event in host.fired] == expected


def test_a_payload_reaches_every_armed_job_of_the_channel_in_order(host, user):
    for number in (1, 2):
        listen(user, number, who(1000), "deploy")
    listen(user, 3, who(1000), "other")
    assert user.raise_events(who(1000), "deploy", [b"a", b"b"]) == 2
    got = [(job, event_pb2.Event.FromString(event).user.payload) for job, event in host.fired]
    assert got == [(1, b"a"), (1, b"b"), (2, b"a"), (2, b"b")]
    assert len({id(event) for _, event in host.fired}) == 2


def test_work_of_one_raise_is_bounded_whoever_listens(host, user):
    host.limits = Limits(raise_fires=5)
    for number in (1, 2):
        listen(user, number, who(1000), "deploy")
    with pytest.raises(AemError) as caught:
        user.raise_events(who(1000), "deploy", [b"a"] * 3)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.details["key"] == "limits.raise_fires"
    assert not host.fired
    assert user.raise_events(who(1000), "deploy", [b"a"] * 2) == 2


def test_nobody_listens_and_nothing_happens(host, user):
    assert user.raise_events(who(1000), "deploy", [b"a"]) == 0
    assert not host.fired


def test_a_stopped_job_is_not_reached_and_a_started_one_again(host, user):
    job = listen(user, 1, who(1000), "deploy")
    user.stop(job)
    assert user.raise_events(who(1000), "deploy", [b"a"]) == 0
    user.start(job)
    assert user.raise_events(who(1000), "deploy", [b"b"]) == 1


def test_channels_of_one_name_are_different_for_different_users(host, user):
    listen(user, 1, who(1000), "deploy")
    listen(user, 2, who(1001), "deploy")
    listen(user, 3, who(1000, user_namespace=7), "deploy")
    user.raise_events(who(1001), "deploy", [b"a"])
    assert [job for job, _ in host.fired] == [2]


def test_anothers_channel_is_refused_and_open_to_the_administrator(host, user):
    listen(user, 1, who(1000), "deploy")
    with pytest.raises(AemError) as caught:
        user.raise_events(who(1001), "deploy", [b"a"], 1000)
    assert caught.value.code is Code.PERMISSION_DENIED
    with pytest.raises(AemError):
        listen(user, 2, who(1001), "deploy", uid=1000)
    assert user.raise_events(who(1000), "deploy", [b"a"], 1000) == 1
    root = who(0, administrator=True)
    listen(user, 3, root, "deploy", uid=1000)
    assert user.raise_events(root, "deploy", [b"b"], 1000) == 2


@pytest.mark.parametrize("channel", ["", "x" * 256, "\u00e4" * 128, "line\nbreak", "nul\0"])
def test_a_bad_name_is_refused_for_both_sides(user, channel):
    with pytest.raises(AemError) as caught:
        user.raise_events(who(1000), channel, [b""])
    assert caught.value.details["field"] == "channel"
    with pytest.raises(AemError):
        listen(user, 1, who(1000), channel)


def test_the_longest_name_fits(host, user):
    values = parse_values(
        User.description.parameters, {"channel": job_pb2.Value(text="x" * 255)}, host.limits
    )
    listen(user, 1, who(1000), values["channel"])
    assert user.raise_events(who(1000), "x" * 255, [b""]) == 1


def test_one_payload_over_the_limit_refuses_all(host, user):
    listen(user, 1, who(1000), "deploy")
    with pytest.raises(AemError, match="at most 262144") as caught:
        user.raise_events(who(1000), "deploy", [b"a", b"x" * 262_145])
    assert caught.value.details["field"] == "payloads"
    with pytest.raises(AemError, match="there is none"):
        user.raise_events(who(1000), "deploy", [])
    assert not host.fired


def test_too_many_payloads_in_one_raise_are_refused_whoever_listens(host, user):
    most = host.limits.raise_payloads
    with pytest.raises(AemError, match=f"at most {most}") as caught:
        user.raise_events(who(1000), "nobody", [b""] * (most + 1))
    assert caught.value.details["field"] == "payloads"
    listen(user, 1, who(1000), "deploy")
    user.raise_events(who(1000), "deploy", [b""] * most)
    assert len(host.fired) == most


def test_channels_are_counted_per_user_and_given_back():
    user = User(Host(accounts=Accounts(DefaultQuotas(Quota(channels=2)))))
    first = listen(user, 1, who(1000), "a")
    listen(user, 2, who(1000), "b")
    listen(user, 3, who(1000), "b")
    listen(user, 4, who(1001), "c")
    with pytest.raises(AemError) as caught:
        listen(user, 5, who(1000), "c")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    user.close(first)
    listen(user, 6, who(1000), "c")


def test_close_of_all_jobs_leaves_nothing(user):
    jobs = [listen(user, number, who(1000 + number % 3), f"c{number % 5}") for number in range(30)]
    assert Counter(user.details(job)["listeners"] for job in jobs) == Counter({"2": 30})
    for job in jobs:
        user.close(job)
    assert not user._channels
    assert not user._host.accounts.in_use()


def test_sender_is_named_by_the_number_that_the_channels_owner_knows(user: User, host: Host) -> None:
    inside = who(1_000, pid=4_242, pid_namespace=9, own_pid=7)
    root = who(0, pid=77, administrator=True)
    listen(user, 1, inside, "c")
    listen(user, 2, who(1_000), "c")
    for sender, uid in ((inside, None), (root, 1_000), (inside, None)):
        assert user.raise_events(sender, "c", [b""], uid) == 1
    pids = [(job, event_pb2.Event.FromString(event).user.sender_pid) for job, event in host.fired]
    assert pids == [(1, 7), (2, 77), (1, 7)]


def test_one_sender_has_a_number_in_each_namespace_that_it_raises_in(user: User, host: Host) -> None:
    """Somebody of another pid namespace who may raise on a channel of the daemon's, too."""
    granted = who(1_000, pid=4_242, pid_namespace=9, own_pid=7, administrator=True)
    listen(user, 1, granted, "c")
    listen(user, 2, who(1_001), "c")
    for uid in (None, 1_001, None):
        user.raise_events(granted, "c", [b""], uid)
    pids = [(job, event_pb2.Event.FromString(event).user.sender_pid) for job, event in host.fired]
    assert pids == [(1, 7), (2, 4_242), (1, 7)]
