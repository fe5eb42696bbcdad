"""From the tables of configuration files to limits, rules and quotas, with all that is wrong on the way.

shapes.py says what there may be. Here come the things that no type says: names that are looked up, rules that
contradict each other or can never apply, parameters and fields that no event module has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Literal

from aemd.core import limits as bounds
from aemd.core.limits import Limits
from aemd.core.patterns import PathPatterns, Patterns, is_literal
from aemd.core.policy import BUILT_IN, GRANTS, QuotaRule, Rule, Subject
from aemd.core.quota import RESOURCES
from aemd.modules.contract import Description
from aemd.service.files import Problem, Source
from aemd.service.locator import Path
from aemd.service.names import Names
from aemd.service.redaction import unknown_field
from aemd.service.shapes import Checker, LogTable, Name, RuleTable, SubjectTable, listed, meant, near, shown

RULES_MAX = 1_000  # each is held against those before it, and each registration against all
QUOTA_MAX = 1 << 53  # what every language's numbers hold


class Tables:
    """Takes files, one by one in their order; what they say, and what is wrong with it, is in its fields."""

    def __init__(self, modules: Mapping[str, Description] | None, names: Names | None = None) -> None:
        self._modules = modules
        self._names = names or Names()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.limits = Limits()
        self.level = ""
        self.rules: list[Rule] = []
        self.quotas: list[QuotaRule] = []
        self._seen: dict[tuple[str, str], str] = {("rule", rule.name): "a built-in rule" for rule in BUILT_IN}

    def take(self, source: Source) -> None:
        """One file more."""
        check = Checker(source, self.problems)
        takers: dict[str, Callable[[Checker, object], None]] = {
            "rule": self._take_rules,
            "quota": self._take_quotas,
        }
        if source.main:
            takers |= {"limits": self._take_limits, "log": self._take_log}
        for key, value in source.content.items():
            taker = takers.get(key)
            if taker is not None:
                taker(check, value)
            elif key in ("limits", "log"):
                check.problem((key,), "only aemd.toml may have it; files of policy.d have rule and quota")
            else:
                check.problem((key,), f"no such table{meant(key, takers)}")

    # Tables.

    def _take_limits(self, check: Checker, table: object) -> None:
        if not isinstance(table, dict):
            check.problem(("limits",), f"{shown(table)}: must be a table, [limits]")
            return
        known = [field.name for field in fields(Limits)]
        found = {}
        for key, value in table.items():
            path = ("limits", key)
            if key not in known:
                check.problem(path, f"no such limit{meant(key, known)}")
                continue
            number = check.quantity(path, key, value, bounds.RANGES.get(key, bounds.RANGE))
            if number is not None:
                found[key] = number
        limits = replace(self.limits, **found)
        for less, more in bounds.ORDER:
            least, most = getattr(limits, less), getattr(limits, more)
            if least > most and (less in found or more in found):
                key = less if less in found else more
                check.problem(("limits", key), f"{less} is {least}, above {more}, which is {most}")
        self.limits = limits

    def _take_log(self, check: Checker, table: object) -> None:
        log = check.struct(("log",), LogTable, table)
        if log is not None:
            self.level = log.level or ""

    def _take_rules(self, check: Checker, tables: object) -> None:
        for path, table in self._each(check, "rule", tables):
            found = check.struct(path, RuleTable, table)
            if found is None:
                continue
            rule = self._rule(check, path, found)
            if rule is not None and self._is_new(check, path, rule.name):
                self._check_order(check, path, rule)
                self._check_modules(check, path, rule)
                self.rules.append(rule)

    def _take_quotas(self, check: Checker, tables: object) -> None:
        for path, table in self._each(check, "quota", tables):
            if len(self.quotas) >= RULES_MAX:
                check.problem(path, f"more than {RULES_MAX} quotas")
                return
            if not isinstance(table, dict):
                check.problem(path, f"{shown(table)}: must be a table, [[quota]]")
                continue
            count = len(self.problems)
            name = check.value((*path, "name"), Name, table.get("name"))
            subject = self._subject(check, (*path, "subject"), table.get("subject"))
            limits = self._resources(check, path, table)
            if len(self.problems) == count and subject is not None and self._is_new(check, path, name):
                quota = QuotaRule(name, subject, limits, check.source.origin(path))
                self._check_quota(check, path, quota)
                self.quotas.append(quota)

    def _resources(self, check: Checker, path: Path, table: Mapping[str, object]) -> dict[str, int]:
        found = {}
        for key, value in table.items():
            if key in ("name", "subject"):
                continue
            if key not in RESOURCES:
                check.problem((*path, key), f"no such resource{meant(key, (*RESOURCES, 'name', 'subject'))}")
                continue
            number = check.quantity((*path, key), key, value, (0, QUOTA_MAX))
            if number is not None:
                found[key] = number
        if not set(table) - {"name", "subject"}:
            check.problem(path, f"sets nothing; there are {', '.join(RESOURCES)}")
        return found

    # Rules.

    def _rule(self, check: Checker, path: Path, table: RuleTable) -> Rule | None:
        count = len(self.problems)
        subject = self._subject_of(check, (*path, "subject"), table.subject)
        allow = table.effect == "allow"
        for key, given in (("grant", table.grant), ("redact", table.redact)):
            if given and not allow:
                check.problem((*path, key), 'has no meaning with effect = "deny"')
        for index, grant in enumerate(table.grant or ()):
            if grant not in GRANTS:
                check.problem((*path, "grant", index), f"{shown(grant)}: no such grant{meant(grant, GRANTS)}")
        if subject is None or len(self.problems) > count:
            return None
        return Rule(
            table.name,
            subject,
            Patterns(listed(table.module)),
            allow,
            params={name: Patterns(listed(texts)) for name, texts in table.params.items()},
            grants=frozenset(table.grant or ()),
            redactions=tuple(table.redact or ()),
            origin=check.source.origin(path),
        )

    def _subject(self, check: Checker, path: Path, table: object) -> Subject | None:
        if table is None:
            check.problem(path, "is missing; it says whom this is about, for example { all = true }")
            return None
        found = check.struct(path, SubjectTable, table)
        return None if found is None else self._subject_of(check, path, found)

    def _subject_of(self, check: Checker, path: Path, table: SubjectTable) -> Subject | None:
        count = len(self.problems)
        parts = ("uid", "gid", "user", "group", "unit", "cgroup")
        given = [part for part in parts if getattr(table, part) is not None]
        if table.all and given:
            check.problem(path, f"all = true contradicts {given[0]}; take one of them out")
        if not table.all and not given:
            check.problem(path, f"names nobody; there are {', '.join(parts)}, and all = true")
        uids = None if table.uid is None else frozenset(listed(table.uid))
        users = self._numbers(check, (*path, "user"), table.user, self._names.uid, "user")
        groups = self._numbers(check, (*path, "group"), table.group, self._names.gid, "group")
        if users is not None:
            uids = users if uids is None else uids & users
            if not uids and len(self.problems) == count:
                check.problem((*path, "user"), "contradicts uid: nobody is both")
        for index, text in enumerate(listed(table.cgroup)):
            if not text.startswith("/") or "//" in text or ".." in text.split("/"):
                where = check.element((*path, "cgroup"), index)
                check.problem(where, f"{shown(text)}: must be a path from /, as in /system.slice")
        for index, text in enumerate(listed(table.unit)):
            if text.startswith("/") or not all(text.split("/")):
                where = check.element((*path, "unit"), index)
                check.problem(where, f"{shown(text)}: must be the name of a unit, as in cron.service")
        if len(self.problems) > count:
            return None
        gids = None if table.gid is None else frozenset(listed(table.gid))
        return Subject(
            everyone=bool(table.all),
            uids=uids,
            groups=tuple(some for some in (gids, groups) if some is not None),
            units=PathPatterns(listed(table.unit)) if table.unit is not None else None,
            cgroups=PathPatterns(listed(table.cgroup)) if table.cgroup is not None else None,
        )

    def _numbers(
        self,
        check: Checker,
        path: Path,
        names: str | list[str] | None,
        number_of: Callable[[str], int | None],
        what: Literal["user", "group"],
    ) -> frozenset[int] | None:
        if names is None:
            return None
        found = set()
        for index, name in enumerate(listed(names)):
            number = number_of(name)
            if number is None:
                where = (*path, index) if isinstance(names, list) else path
                known = self._names.known(what)
                numeric = (
                    f"; for a number write {what[0]}id = {name}" if name.isdigit() else near(name, known)
                )
                check.problem(where, f"{shown(name)}: there is no such {what}{numeric}")
            else:
                found.add(number)
        return frozenset(found)

    # What holds between them.

    def _is_new(self, check: Checker, path: Path, name: str) -> bool:
        kind = str(path[0])
        where = self._seen.get((kind, name))
        if where is None:
            self._seen[kind, name] = check.source.origin(path)
            return True
        check.problem((*path, "name"), f"{shown(name)}: there is one of this name, {where}")
        return False

    def _check_order(self, check: Checker, path: Path, rule: Rule) -> None:
        if len(self.rules) >= RULES_MAX:
            check.problem(path, f"more than {RULES_MAX} rules")
            return
        for earlier in self.rules:
            if not earlier.covers(rule):
                continue
            same = rule.covers(earlier)
            if same and earlier.allow != rule.allow:
                what = (
                    f"contradicts rule {earlier.name}, {earlier.origin}, which says the opposite of the same"
                )
                key = "effect"
            else:
                what = (
                    f"can never apply: rule {earlier.name}, {earlier.origin}, stands before it and covers it"
                )
                key = "name"
            check.problem((*path, key), f"{what}; take one out, or change their order")
            return

    def _check_quota(self, check: Checker, path: Path, quota: QuotaRule) -> None:
        for earlier in self.quotas:
            if not earlier.subject.covers(quota.subject):
                continue
            for key in quota.limits:
                if key in earlier.limits:
                    what = (
                        f"can never apply: quota {earlier.name}, {earlier.origin}, is before it and sets it"
                    )
                    check.problem((*path, key), f"{what}; take one out, or change their order")

    def _check_modules(self, check: Checker, path: Path, rule: Rule) -> None:
        """Hold a rule against the modules that are loaded."""
        modules = self._modules
        if modules is None:
            return
        about = {name: module for name, module in modules.items() if rule.modules.matches(name)}
        for index, text in enumerate(rule.modules.texts):
            if is_literal(text) and text not in modules:
                where = check.element((*path, "module"), index)
                message = (
                    f"{shown(text)}: no such module is loaded{near(text, modules)}; nothing else can be said"
                )
                self.warnings.append(check.source.problem(where, message))
        if not about:
            return
        must = [name for name in rule.modules.literals() if name in about]
        for name in rule.params:
            known = {text: [p.name for p in module.parameters] for text, module in about.items()}
            self._check_known(check, (*path, "params", name), name, known, must, "parameter")
        for index, field in enumerate(rule.redactions):
            unknown = {text: unknown_field(field, module.payload_message) for text, module in about.items()}
            lacking = [text for text in unknown if unknown[text]]
            if lacking and (len(lacking) == len(about) or set(lacking) & set(must)):
                told = next((text for text in lacking if text in must), lacking[0])
                check.problem((*path, "redact", index), f"{shown(field)}: module {told}: {unknown[told]}")

    def _check_known(
        self,
        check: Checker,
        path: Path,
        name: str,
        known: Mapping[str, Sequence[str]],
        must: Sequence[str],
        what: str,
    ) -> None:
        """That every module named by its name, and at least one of those that a pattern means, has `name`."""
        lacking = [module for module in known if name not in known[module]]
        if lacking and (len(lacking) == len(known) or set(lacking) & set(must)):
            told = next((module for module in lacking if module in must), lacking[0])
            check.problem(path, f"module {told} has no such {what}{meant(name, known[told])}")

    # Values.

    def _each(self, check: Checker, kind: str, tables: object) -> list[tuple[Path, object]]:
        if not isinstance(tables, list):
            check.problem((kind,), f"{shown(tables)}: must be an array of tables, [[{kind}]]")
            return []
        return [((kind, index), table) for index, table in enumerate(tables)]
