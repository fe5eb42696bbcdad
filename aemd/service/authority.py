"""The policy in force, asked by whoever serves a caller.

It rules on registrations and raises, asks right() with what the rule grants, and has audited what comes of
it. Where no rule is about a module nothing is asked: there is no ruling, and everybody has his own rights.

The policy is put in another's place as a whole (`install`); what was ruled under the one before keeps its
ruling until it is ruled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aemd.core.errors import AemError, Code
from aemd.core.policy import BUILT_IN, Policy, Rule, Ruling
from aemd.core.principal import Principal
from aemd.core.quota import Quota
from aemd.core.right import Act, right
from aemd.modules.contract import Description
from aemd.service import log
from aemd.service.audit import Audit
from aemd.service.redaction import redactor, unknown_field

MODULE_USER = "user"  # whose Raise is ruled as its registration is


class Authority:
    """Rules on what callers want."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.policy = Policy()
        self.rules_on_raise = False  # some rule is about module user
        self._rulings: dict[tuple[str, str], Ruling] = {}  # by rule and module

    def install(self, policy: Policy) -> None:
        """Rule by `policy` from now on."""
        self.policy = policy
        self.rules_on_raise = bool(policy.about(MODULE_USER))
        self._rulings.clear()

    def forget(self, module: str) -> None:
        """A module was unloaded, or is loaded anew: its events may be others."""
        self._rulings = {key: ruling for key, ruling in self._rulings.items() if key[1] != module}

    def greet(self, module: Description) -> None:
        """A module was loaded. The rules about it were read when nobody knew its parameters; one that names a
        parameter it has not can never apply, and that is said.
        """
        self.forget(module.name)
        known = {parameter.name for parameter in module.parameters}
        for rule in self.policy.about(module.name):
            for name in rule.params.keys() - known:
                if module.name in rule.modules.literals():
                    message = f"{rule.origin}: params.{name}: module {module.name} has no such parameter"
                    log.get().warning("configuration doubtful", **{log.RULE: rule.name, log.ERROR: message})

    def quota(self, principal: Principal) -> tuple[Quota, Mapping[str, str]]:
        """What `principal` may have; see core.quota.Quotas."""
        return self.policy.quota(principal)

    def rule(
        self, principal: Principal, module: Description, values: Mapping[str, object], *, doing: str = ""
    ) -> Ruling | None:
        """What policy says to a registration with these values, or to what is done with such a job; None: the
        caller's own rights. AemError PERMISSION_DENIED, POLICY, if it says no.
        """
        if not self.policy.about(module.name):
            return None
        rule = self.policy.decide(principal, module.name, values)
        if rule in BUILT_IN:
            return None
        if not rule.allow:
            doing = doing or f"register for module {module.name}"
            raise self._denied(principal, module.name, values, rule, doing)
        return self._ruling(rule, module)

    def rule_anew(
        self, principal: Principal, module: Description, values: Mapping[str, object]
    ) -> tuple[Rule, Ruling | None]:
        """The rule that decides of a job that is there already, and its ruling; nobody has asked for it, so
        nothing is audited. AemError if the rule does not fit the module.
        """
        rule = self.policy.decide(principal, module.name, values)
        return rule, None if rule in BUILT_IN or not rule.allow else self._ruling(rule, module)

    def right(self, principal: Principal, act: Act, ruling: Ruling | None = None) -> None:
        """Return if `principal` may do `act`, else raise AemError."""
        try:
            used = right(principal, act, ruling)
        except AemError as error:
            rule = ruling.rule.name if ruling is not None else ""
            self.audit.denied(principal, act.what, error.reason, rule)
            raise
        if used:
            self.audit.granted(principal, act.what, used, ruling)

    def _denied(
        self, principal: Principal, module: str, values: Mapping[str, object], rule: Rule, doing: str
    ) -> AemError:
        self.audit.denied(principal, doing, "POLICY", rule.name)
        doubts = self.policy.doubts(principal, module, values)
        return AemError(
            Code.PERMISSION_DENIED,
            "POLICY",
            f"{doing}: rule {rule.name} of the administrator's policy denies it to uid {principal.uid}"
            + (f"; {doubts}" if doubts else ""),
            rule=rule.name,
            uid=principal.uid,
        )

    def _ruling(self, rule: Rule, module: Description) -> Ruling:
        key = (rule.name, module.name)
        ruling = self._rulings.get(key)
        if ruling is None:
            ruling = self._rulings[key] = Ruling(rule, _redactor(rule, module))
        return ruling


def _redactor(rule: Rule, module: Description) -> Callable[[bytes], bytes] | None:
    """What takes the rule's redactions out of the module's events; None if it takes out nothing.

    AemError if the rule names the module and its events have no such field: the configuration is held against
    the modules that are loaded, but this one may have come later.
    """
    if not rule.redactions:
        return None
    unknown = {field: unknown_field(field, module.payload_message) for field in rule.redactions}
    known = [field for field in rule.redactions if not unknown[field]]
    if len(known) < len(unknown) and (not known or module.name in rule.modules.literals()):
        field = next(field for field in rule.redactions if unknown[field])
        raise AemError(
            Code.PERMISSION_DENIED,
            "POLICY",
            f"rule {rule.name} takes {field} out of events of module {module.name}, and {unknown[field]}; "
            "the administrator must mend the rule",
            rule=rule.name,
        )
    return redactor(known, module.payload_message)
