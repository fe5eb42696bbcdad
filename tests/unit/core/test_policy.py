"""Which rule decides, for whom it is certain enough, and what quotas say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aemd.core.patterns import PathPatterns, Patterns
from aemd.core.policy import ADMINISTRATOR, OWN_RIGHTS, Policy, QuotaRule, Rule, Subject, texts
from aemd.core.principal import Owner, Principal
from aemd.core.quota import Quota

USER = Principal(
    Owner(1000),
    1000,
    (27, 100),
    77,
    1,
    administrator=False,
    cgroup="/system.slice/web.service",
    unit="web.service",
    proven=True,
)
ROOT = Principal(Owner(0), 0, (), 78, 1, administrator=True, proven=True)
EVERYONE = Subject(everyone=True)
UNIT = Subject(units=PathPatterns(("web.service",)))
CGROUP = Subject(cgroups=PathPatterns(("/system.slice",)))


def rule(name: str, subject: Subject = EVERYONE, *, modules: str = "*", allow: bool = False, **more) -> Rule:
    return Rule(name, subject, Patterns((modules,)), allow, **more)


def decided(policy: Policy, who: Principal = USER, module: str = "timer", **values: object) -> str:
    return policy.decide(who, module, values).name


@pytest.mark.parametrize(
    ("subject", "matches"),
    [
        (EVERYONE, True),
        (Subject(uids=frozenset({1000, 5})), True),
        (Subject(uids=frozenset({1001})), False),
        (Subject(groups=(frozenset({1000}),)), True),
        (Subject(groups=(frozenset({27}),)), True),
        (Subject(groups=(frozenset({27}), frozenset({100, 7}))), True),
        (Subject(groups=(frozenset({27}), frozenset({7}))), False),
        (UNIT, True),
        (Subject(units=PathPatterns(("w?b.*",))), True),
        (Subject(units=PathPatterns(("cron.service",))), False),
        (CGROUP, True),
        (Subject(cgroups=PathPatterns(("/user.slice",))), False),
        (replace(UNIT, uids=frozenset({1000})), True),
        (replace(UNIT, uids=frozenset({1001})), False),
    ],
)
def test_every_part_of_a_subject_must_match(subject, matches):
    assert subject.matches(USER) is matches
    assert decided(Policy([rule("it", subject)])) == ("it" if matches else "own-rights")


def test_whose_unit_and_group_are_not_known_is_in_none():
    nowhere = replace(USER, unit="", cgroup="")
    everywhere = PathPatterns(("/", "*"))
    assert not Subject(units=everywhere).matches(nowhere)
    assert not Subject(cgroups=everywhere).matches(nowhere)


def test_the_first_rule_that_applies_decides():
    policy = Policy([rule("process", modules="process"), rule("first", allow=True), rule("second")])
    assert decided(policy) == "first"
    assert decided(policy, module="process") == "process"


def test_the_administrator_is_never_denied():
    policy = Policy([rule("nobody"), rule("root", Subject(uids=frozenset({0})))])
    assert policy.decide(ROOT, "timer", {}) is ADMINISTRATOR
    container_root = replace(ROOT, administrator=False, owner=Owner(0, 5, 6))
    assert decided(policy, container_root) == "nobody"


def test_without_a_rule_everybody_has_his_own_rights():
    assert Policy().decide(USER, "timer", {}) is OWN_RIGHTS
    assert Policy().about("timer") == ()
    assert Policy([rule("other", modules="so*")]).about("timer") == ()


def test_allowed_parameters_must_all_match_and_one_is_enough_to_be_denied():
    patterns = {"listen": Patterns(("tcp:*", "udp:*"))}
    allow, deny = Policy([rule("a", allow=True, params=patterns)]), Policy([rule("d", params=patterns)])
    for values, allowed, denied in [
        (("tcp::80", "udp::53"), True, True),
        (("tcp::80", "unix:@x"), False, True),
        (("unix:@x",), False, False),
        ((), False, False),
    ]:
        assert (decided(allow, listen=values) == "a") is allowed
        assert (decided(deny, listen=values) == "d") is denied
    assert decided(allow) == decided(deny) == "own-rights", "an absent parameter matches nothing"


def test_a_parameter_is_seen_as_it_was_parsed():
    assert texts(17) == ("17",)
    assert texts(True) == ("yes",)
    assert texts(b"/a\xff") == ("/a\udcff",)
    assert texts((1, (b"x", None))) == ("1", "x")
    assert texts(None) == ()


@pytest.mark.parametrize("subject", [UNIT, CGROUP, replace(UNIT, uids=frozenset({1000}))])
def test_who_is_not_proven_is_given_nothing_for_his_unit_and_denied_all_the_same(subject):
    unproven = replace(USER, proven=False)
    allow = Policy([rule("allow", subject, allow=True), rule("rest")])
    assert decided(allow) == "allow"
    assert decided(allow, unproven) == "rest"
    assert "SO_PEERPIDFD" in allow.doubts(unproven, "timer", {})
    assert allow.doubts(USER, "timer", {}) == ""
    assert decided(Policy([rule("deny", subject)]), unproven) == "deny"


@pytest.mark.parametrize("owner", [Owner(1000, user_namespace=7), Owner(1000, pid_namespace=7)])
def test_a_number_in_another_namespace_is_given_nothing_unless_its_unit_is_named(owner):
    contained = replace(USER, owner=owner)
    by_uid = Subject(uids=frozenset({1000}))
    for subject in (by_uid, Subject(groups=(frozenset({27}),))):
        assert decided(Policy([rule("allow", subject, allow=True)]), contained) == "own-rights"
        assert decided(Policy([rule("deny", subject)]), contained) == "deny"
    assert decided(Policy([rule("allow", allow=True)]), contained) == "allow"
    assert decided(Policy([rule("both", replace(UNIT, uids=by_uid.uids), allow=True)]), contained) == "both"
    assert "namespace" in Policy([rule("allow", by_uid, allow=True)]).doubts(contained, "timer", {})


def test_steps_end_with_the_one_that_decides_and_say_why():
    policy = Policy(
        [
            rule("other", modules="socket"),
            rule("else", Subject(uids=frozenset({5}))),
            rule("params", params={"every": Patterns(("1s",))}),
            rule("it", allow=True),
            rule("behind"),
        ]
    )
    steps = list(policy.steps(USER, "timer", {"every": "2s"}))
    assert [(step.rule.name, step.applies) for step in steps] == [
        ("other", False),
        ("else", False),
        ("params", False),
        ("it", True),
    ]
    assert [step.reason for step in steps[:3]] == [
        "module is not socket",
        "uid does not match",
        "parameter every is not 1s",
    ]
    assert [step.rule.name for step in policy.steps(ROOT, "timer", {})] == ["administrator"]
    assert [step.rule.name for step in Policy().steps(USER, "timer", {})] == ["own-rights"]


def test_the_first_quota_that_sets_a_resource_decides_it():
    policy = Policy(
        quota_rules=[
            QuotaRule("web", UNIT, {"jobs": 5}),
            QuotaRule("user", Subject(uids=frozenset({1000})), {"jobs": 7, "sessions": 3}),
            QuotaRule("all", EVERYONE, {"jobs": 9, "sessions": 9, "children": 1}),
        ]
    )
    quota, origins = policy.quota(USER)
    assert (quota.jobs, quota.sessions, quota.children) == (5, 3, 1)
    assert dict(origins) == {"jobs": "web", "sessions": "user", "children": "all"}
    assert quota.channels == Quota().channels


def test_a_quota_for_all_is_not_the_administrators():
    policy = Policy(quota_rules=[QuotaRule("all", EVERYONE, {"jobs": 1})])
    assert policy.quota(ROOT) == (Quota(), {})
    policy = Policy(quota_rules=[QuotaRule("root", Subject(uids=frozenset({0})), {"jobs": 1})])
    assert policy.quota(ROOT)[0].jobs == 1


def test_an_unproven_unit_gets_no_more_and_may_get_less():
    default = Quota().jobs
    unproven = replace(USER, proven=False)
    more = Policy(quota_rules=[QuotaRule("more", UNIT, {"jobs": default + 1})])
    less = Policy(quota_rules=[QuotaRule("less", UNIT, {"jobs": default - 1})])
    assert more.quota(USER)[0].jobs == default + 1
    assert more.quota(unproven) == (Quota(), {})
    assert less.quota(unproven)[0].jobs == default - 1


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        (rule("a"), rule("b"), True),
        (rule("a"), rule("b", Subject(uids=frozenset({1}))), True),
        (rule("a", Subject(uids=frozenset({1}))), rule("b"), False),
        (rule("a", Subject(uids=frozenset({1, 2}))), rule("b", Subject(uids=frozenset({1}))), True),
        (rule("a", Subject(uids=frozenset({1}))), rule("b", Subject(uids=frozenset({1, 2}))), False),
        (rule("a", Subject(uids=frozenset({1}))), rule("b", Subject(groups=(frozenset({1}),))), False),
        (rule("a", Subject(groups=(frozenset({1, 2}),))), rule("b", Subject(groups=(frozenset({1}),))), True),
        (rule("a", UNIT), rule("b", replace(UNIT, uids=frozenset({1}))), True),
        (rule("a", modules="socket"), rule("b"), False),
        (rule("a", modules="s*"), rule("b", modules="socket"), True),
        (rule("a", params={"x": Patterns(("1",))}), rule("b"), False),
        (rule("a"), rule("b", params={"x": Patterns(("1",))}), True),
        (
            rule("a", params={"x": Patterns(("*",))}),
            rule("b", params={"x": Patterns(("1",)), "y": Patterns(("2",))}),
            True,
        ),
    ],
)
def test_which_rule_covers_which(earlier, later, covered):
    assert earlier.covers(later) is covered


def test_what_decides_is_what_the_steps_end_with_for_everybody():
    """decide() remembers who is meant by what; steps() looks at everything each time."""
    subjects = [EVERYONE, UNIT, CGROUP, Subject(uids=frozenset({1000})), Subject(groups=(frozenset({27}),))]
    policy = Policy(
        [
            rule(f"{number}{effect}{text}", subject, allow=effect == "a", params={"p": Patterns((text,))})
            for text in ("x", "y*")
            for effect in "da"
            for number, subject in enumerate(subjects)
        ]
    )
    callers = [
        replace(USER, owner=owner, proven=proven, unit=unit, groups=groups)
        for owner in (Owner(1000), Owner(1001), Owner(1000, 7), Owner(1000, 0, 7))
        for proven in (True, False)
        for unit in ("web.service", "")
        for groups in ((), (27,))
    ]
    for _ in range(2):
        for caller in [*callers, ROOT]:
            for value in ("x", "y1", "z"):
                (*_, last) = policy.steps(caller, "timer", {"p": value})
                assert policy.decide(caller, "timer", {"p": value}) is last.rule
