"""What policy says to a registration that nobody makes: ExplainPolicy.

The answer is that of a real registration, as far as rights go: rules first, then the caller's own rights,
from what the module says it would do. Nothing is acquired, counted or audited.

For oneself, as one is; the administrator may ask for anybody, also for who is not there. Who asks for himself
is not shown the rules that are about others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aemd.core.errors import AemError, Code, invalid
from aemd.core.policy import ADMINISTRATOR, OWN_RIGHTS, Ruling, Step
from aemd.core.principal import Owner, Principal
from aemd.core.right import right
from aemd.modules.contract import Module
from aemd.modules.need import Given, OpenPath
from aemd.modules.params import parse_values
from aemd.peer.deputy import Deputy
from aemd.service.authority import Authority
from aemd.service.conductor import Conductor
from aemd.service.names import Names
from aemd.service.unary import Later
from aemd.v1 import admin_pb2, job_pb2


class Explainer:
    """Answers ExplainPolicy."""

    def __init__(self, conductor: Conductor, deputy: Deputy, *, administrator: int) -> None:
        self._administrator = administrator
        self._deputy = deputy
        self._limits = conductor.limits
        self._registry = conductor.registry
        self._authority: Authority = conductor.authority
        self._names = Names()

    def explain(
        self, principal: Principal, request: admin_pb2.ExplainPolicyRequest
    ) -> admin_pb2.ExplainPolicyResponse | Later:
        """What is decided, and why. Later, if the deputy has to try a path."""
        if not request.module:
            raise invalid("module", "is required")
        about = self._subject(principal, request)
        module = self._registry.get(request.module) if request.module in self._registry else None
        values, missing = self._values(module, request.params)
        steps = list(self._authority.policy.steps(about, request.module, values))
        rule = steps[-1].rule
        allowed, reason = (
            rule.allow,
            f"rule {rule.name} allows it" if rule.allow else f"rule {rule.name} denies it",
        )
        if rule.allow and rule is not ADMINISTRATOR:
            allowed, more = self._own_rights(about, module, values, missing, Ruling(rule))
            reason = f"{reason}; {more}"
        doubts = "" if allowed else self._authority.policy.doubts(about, request.module, values)
        shown = principal.administrator
        response = admin_pb2.ExplainPolicyResponse(
            allowed=allowed,
            rule=rule.name,
            origin=rule.origin if shown else "",
            reason=f"{reason}; {doubts}" if doubts else reason,
            steps=[_step(step, shown=shown) for step in steps if shown or step.rule.subject.matches(about)],
            grants=sorted(rule.grants),
            redactions=rule.redactions,
        )
        if allowed and rule is not ADMINISTRATOR and module is not None and not missing:
            opens = module.opens(values)
            if opens:
                return self._try_paths(about, opens, response)
        return response

    def _try_paths(
        self, about: Principal, opens: Sequence[OpenPath], response: admin_pb2.ExplainPolicyResponse
    ) -> Later:
        """Have the paths opened as the caller, or, where there is none, as a process of that user would."""
        later = Later()
        ask = self._deputy.ask if about.pid else self._deputy.ask_for_user
        waiting = list(opens)

        def answered(given: Given | AemError) -> None:
            if isinstance(given, AemError):
                response.allowed = False
                response.reason = f"{response.reason}, but not for the path: {given.message}"
                later.give(response)
                return
            if given is not None:
                given.close()
            try_next()

        def try_next() -> None:
            if waiting:
                ask(about, waiting.pop(0), answered)
                return
            response.reason += "; it may look up the path, and what else it needs of it is not tried"
            later.give(response)

        try_next()
        return later

    def _own_rights(
        self,
        about: Principal,
        module: Module | None,
        values: Mapping[str, object],
        missing: str,
        ruling: Ruling,
    ) -> tuple[bool, str]:
        """Whether the caller's own rights, and what is granted, suffice."""
        if module is None:
            return True, "no such module is loaded, so nothing is known of the rights that it needs"
        if missing:
            return True, f"the rights that it needs depend on parameter {missing}, which is not given"
        given = ruling if ruling.rule is not OWN_RIGHTS else None
        used: set[str] = set()
        try:
            for act in module.acts(about, values):
                used |= right(about, act, given)
        except AemError as error:
            if error.code is Code.NOT_FOUND:  # what is hidden and what is not there look the same
                return False, "what the parameters name does not exist, or is not for this user"
            return False, error.message
        if used:
            return True, f"its grants suffice: {', '.join(sorted(used))}"
        return True, "the user's own rights suffice"

    def _subject(self, principal: Principal, request: admin_pb2.ExplainPolicyRequest) -> Principal:
        """For whom it is asked."""
        others = [name for name in ("gid", "unit", "cgroup") if _given(request, name)]
        if not request.HasField("uid"):
            if others:
                raise invalid(others[0], "needs uid; without it the answer is for the caller as it is")
            return principal
        if not principal.administrator:
            if request.uid == principal.uid and not others:
                return principal
            raise AemError(
                Code.PERMISSION_DENIED,
                "NOT_ALLOWED",
                "only the administrator may ask what policy says to somebody else; leave out uid",
                uid=principal.uid,
            )
        known = self._names.groups_of(request.uid)
        gid, groups = known if known is not None else (request.uid, ())
        return Principal(
            owner=Owner(request.uid),
            gid=request.gid if request.HasField("gid") else gid,
            groups=groups,
            pid=0,
            start_time_ticks=0,
            administrator=request.uid in (0, self._administrator),
            cgroup=request.cgroup,
            unit=request.unit,
            proven=True,
        )

    def _values(
        self, module: Module | None, given: Mapping[str, job_pb2.Value]
    ) -> tuple[Mapping[str, object], str]:
        """The parameters, and the first one that a registration could not do without."""
        if module is None:
            return {name: _text(value) for name, value in given.items()}, ""
        parameters = module.description.parameters
        missing = [p.name for p in parameters if p.required and p.name not in given]
        there = [p for p in parameters if p.name not in missing]
        return parse_values(there, given, self._limits), missing[0] if missing else ""


def _given(request: admin_pb2.ExplainPolicyRequest, name: str) -> bool:
    return request.HasField("gid") if name == "gid" else bool(getattr(request, name))


def _text(value: job_pb2.Value) -> object:
    kind = value.WhichOneof("kind")
    if kind == "list":
        return tuple(_text(each) for each in value.list.values)
    return None if kind is None else getattr(value, kind)


def _step(step: Step, *, shown: bool) -> admin_pb2.RuleStep:
    origin = step.rule.origin if shown else ""
    return admin_pb2.RuleStep(rule=step.rule.name, origin=origin, applies=step.applies, reason=step.reason)
