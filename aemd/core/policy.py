"""What policy says: rules and quotas, and which of them decides.

Rules stand in an order, that of their files, and the first one that applies decides. Two are always there:
before all of them `administrator`, which no rule can take away, and behind them `own-rights`, which allows
everybody every module within his own rights.

A rule that allows widens nothing by itself. The caller's own rights still hold (core/right.py); only what
the rule *grants* goes beyond them, one word for each fact that right() looks at.

Whom a rule is about must be certain before it gives anything, and need not be before it takes something away:

- unit and control group are certain if the kernel named the very process that connected
  (`Principal.proven`). Else they are those of whoever has its pid now. A rule that allows by them is passed
  over then; one that denies by them applies all the same.
- a uid or gid of a process in another user or pid namespace is a container's business, and need not be the
  user of that number on this machine. A rule that allows by nothing but uid or gid is passed over then.

Nothing here reads files or knows of modules; service/configuration.py makes these objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aemd.core.patterns import PathPatterns, Patterns, patterns
from aemd.core.principal import Principal
from aemd.core.quota import Quota

GRANTS: Mapping[str, str] = {
    "channel": "listen to and raise on the channels of other users",
    "network": "listen in the daemon's network namespace from another one",
    "port": "bind ports below 1024",
    "process": "watch the processes of other users",
}
REMEMBERED_MAX = 4_096  # modules, and principals with their quotas; then they are looked up anew


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a rule is about: every part that is there must match.

    `groups`: the process must be in one of each of these sets, with its gid or its supplementary groups.
    `everyone`: there are no parts.
    """

    everyone: bool = False
    uids: frozenset[int] | None = None
    groups: tuple[frozenset[int], ...] = ()
    units: PathPatterns | None = None
    cgroups: PathPatterns | None = None

    def matches(self, principal: Principal) -> bool:
        """Whether it is about `principal`, as far as that is known."""
        return not self.mismatch(principal)

    def mismatch(self, principal: Principal) -> str:
        """Which part does not match: uid, group, unit, cgroup; empty if all do."""
        if self.uids is not None and principal.uid not in self.uids:
            return "uid"
        for groups in self.groups:
            if principal.gid not in groups and groups.isdisjoint(principal.groups):
                return "group"
        if self.units is not None and not (principal.unit and self.units.matches(principal.unit)):
            return "unit"
        if self.cgroups is not None and not (principal.cgroup and self.cgroups.matches(principal.cgroup)):
            return "cgroup"
        return ""

    def doubt(self, principal: Principal) -> str:
        """Why it is not certain enough that it is about `principal` to give it anything; empty if it is."""
        if not principal.proven and (self.units is not None or self.cgroups is not None):
            return (
                "the kernel did not name the process that connected (SO_PEERPIDFD, Linux 6.5), "
                "so its unit and control group are not certain"
            )
        by_number_only = (
            (self.uids is not None or self.groups) and self.units is None and self.cgroups is None
        )
        owner = principal.owner
        if by_number_only and (owner.user_namespace or owner.pid_namespace):
            return (
                "the caller is in a user or pid namespace of its own, where a uid or group need not be the "
                "one of that number on this machine; name its unit or control group"
            )
        return ""

    def covers(self, other: Subject) -> bool:
        """Whether it is certainly about everybody whom `other` is about."""
        if self.uids is not None and (other.uids is None or not other.uids <= self.uids):
            return False
        if not all(any(theirs <= mine for theirs in other.groups) for mine in self.groups):
            return False
        if self.units is not None and (other.units is None or not self.units.cover(other.units)):
            return False
        return self.cgroups is None or (other.cgroups is not None and self.cgroups.cover(other.cgroups))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `params`: what the texts of a job's parameters must match, by name. `origin`: FILE:LINE,
    empty for a built-in one.
    """

    name: str
    subject: Subject
    modules: Patterns
    allow: bool
    params: Mapping[str, Patterns] = field(default_factory=dict)
    grants: frozenset[str] = frozenset()
    redactions: tuple[str, ...] = ()
    origin: str = ""

    def mismatch(self, principal: Principal, module: str, values: Mapping[str, object]) -> str:
        """Why it does not apply; empty if it does."""
        if not self.modules.matches(module):
            return f"module is not {self.modules}"
        part = self.subject.mismatch(principal)
        if part:
            return f"{part} does not match"
        name = self.misfit(values)
        if name:
            return f"parameter {name} is not {self.params[name]}"
        return self.subject.doubt(principal) if self.allow else ""

    def misfit(self, values: Mapping[str, object]) -> str:
        """Which parameter is not as it must be; empty if all are."""
        for name, wanted in self.params.items():
            # Of several values all must be what is allowed, and one is enough to be denied.
            found = texts(values.get(name))
            match = all if self.allow else any
            if not found or not match(wanted.matches(text) for text in found):
                return name
        return ""

    def covers(self, other: Rule) -> bool:
        """Whether `other`, if it stands behind this one, can never apply."""
        return (
            self.subject.covers(other.subject)
            and self.modules.cover(other.modules)
            and all(
                name in other.params and wanted.cover(other.params[name])
                for name, wanted in self.params.items()
            )
        )


ADMINISTRATOR = Rule("administrator", Subject(everyone=True), patterns(["*"]), allow=True)
OWN_RIGHTS = Rule("own-rights", Subject(everyone=True), patterns(["*"]), allow=True)
BUILT_IN = (ADMINISTRATOR, OWN_RIGHTS)


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """Sets some of the resources of core/quota.py for some principals."""

    name: str
    subject: Subject
    limits: Mapping[str, int]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a job was registered under, where that is more than everybody's own rights: the rule, and what
    takes out of an encoded event what the rule redacts.
    """

    rule: Rule
    redact: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that was looked at, and why it applies or not."""

    rule: Rule
    applies: bool
    reason: str


class Policy:
    """The rules and quotas in force. It never changes: what is read anew is another Policy."""

    __slots__ = ("_about", "_of", "_quotas", "quota_rules", "rules")

    def __init__(self, rules: Sequence[Rule] = (), quota_rules: Sequence[QuotaRule] = ()) -> None:
        self.rules = tuple(rules)
        self.quota_rules = tuple(quota_rules)
        self._about: dict[str, tuple[Rule, ...]] = {}
        self._of: dict[tuple[object, ...], tuple[Rule, ...]] = {}
        self._quotas: dict[tuple[object, ...], tuple[Quota, Mapping[str, str]]] = {}

    def about(self, module: str) -> tuple[Rule, ...]:
        """The rules about a module; none for nearly every module, and then nobody need be asked who he is."""
        known = self._about.get(module)
        if known is None:
            known = tuple(rule for rule in self.rules if rule.modules.matches(module))
            if len(self._about) >= REMEMBERED_MAX:
                self._about.clear()
            self._about[module] = known
        return known

    def decide(self, principal: Principal, module: str, values: Mapping[str, object]) -> Rule:
        """The rule that decides; `values` are the parsed parameters."""
        if principal.administrator:
            return ADMINISTRATOR
        if self.about(module):
            for rule in self._candidates(principal, module):
                if not rule.misfit(values):
                    return rule
        return OWN_RIGHTS

    def _candidates(self, principal: Principal, module: str) -> tuple[Rule, ...]:
        """The rules about a module that are about `principal`, and certain to be: only the parameters decide
        between them. A client registers many jobs, and there may be many rules that are about others.
        """
        key = (module, *_identity(principal))
        known = self._of.get(key)
        if known is None:
            known = tuple(
                rule
                for rule in self.about(module)
                if rule.subject.matches(principal) and not (rule.allow and rule.subject.doubt(principal))
            )
            if len(self._of) >= REMEMBERED_MAX:
                self._of.clear()
            self._of[key] = known
        return known

    def steps(self, principal: Principal, module: str, values: Mapping[str, object]) -> Iterator[Step]:
        """Every rule in order, up to the one that decides."""
        if principal.administrator:
            yield Step(ADMINISTRATOR, applies=True, reason="the administrator is allowed everything")
            return
        for rule in self.rules:
            reason = rule.mismatch(principal, module, values)
            yield Step(rule, applies=not reason, reason=reason or "everything in it matches")
            if not reason:
                return
        yield Step(OWN_RIGHTS, applies=True, reason="everybody is allowed what his own rights allow")

    def doubts(self, principal: Principal, module: str, values: Mapping[str, object]) -> str:
        """Which rule was passed over before the one that decides because it is not certain who is asking, and
        why; for whoever is refused. Empty if there is none.
        """
        if principal.administrator:
            return ""
        for rule in self.about(module):
            reason = rule.mismatch(principal, module, values)
            if not reason:
                return ""
            if reason == rule.subject.doubt(principal):
                return f"rule {rule.name} was passed over: {reason}"
        return ""

    def quota(self, principal: Principal) -> tuple[Quota, Mapping[str, str]]:
        """What `principal` may have, and by resource the quota that says so. See core.quota.Quotas."""
        if not self.quota_rules:
            return _DEFAULTS
        who = _identity(principal)
        known = self._quotas.get(who)
        if known is None:
            known = self._find_quota(principal)
            if len(self._quotas) >= REMEMBERED_MAX:
                self._quotas.clear()
            self._quotas[who] = known
        return known

    def _find_quota(self, principal: Principal) -> tuple[Quota, Mapping[str, str]]:
        found: dict[str, int] = {}
        origins: dict[str, str] = {}
        for quota in self.quota_rules:
            subject = quota.subject
            if principal.administrator and subject.uids is None:
                continue  # what is said of all is not meant for who mends it
            if not subject.matches(principal):
                continue
            doubt = bool(subject.doubt(principal))
            for resource, limit in quota.limits.items():
                if resource in found or (doubt and limit > getattr(_DEFAULT, resource)):
                    continue
                found[resource], origins[resource] = limit, quota.name
        return replace(_DEFAULT, **found) if found else _DEFAULT, origins


def _identity(principal: Principal) -> tuple[object, ...]:
    """Everything of a principal that a Subject looks at."""
    return (
        principal.owner,
        principal.gid,
        principal.groups,
        principal.administrator,
        principal.unit,
        principal.cgroup,
        principal.proven,
    )


_DEFAULT = Quota()
_DEFAULTS: tuple[Quota, Mapping[str, str]] = (_DEFAULT, {})


def texts(value: object) -> tuple[str, ...]:
    """A parsed parameter as patterns see it: one text, or those of its parts; none if it is absent.

    The parsed value, not what was typed: `tcp:localhost:080` is `tcp:127.0.0.1:80`, as it is for the kernel.
    """
    if value is None:
        return ()
    if isinstance(value, tuple):
        return tuple(text for part in value for text in texts(part))
    if isinstance(value, bool):
        return ("yes" if value else "no",)
    if isinstance(value, bytes):
        return (value.decode("utf-8", "surrogateescape"),)
    return (str(value),)
