"""Configuration files: what they may say, and how each thing that is wrong is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from aemd.core.limits import Limits
from aemd.core.policy import Policy
from aemd.core.principal import Owner, Principal
from aemd.modules.process import Process
from aemd.modules.socket import Socket
from aemd.modules.timer import Timer
from aemd.modules.user import User
from aemd.service.configuration import Configuration, interpret
from aemd.service.files import FILE_BYTES_MAX, ConfigurationError, parse, read, read_file
from aemd.service.tables import RULES_MAX

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs/examples"
RULES = (EXAMPLES / "policy.d/50-example.toml").read_text()
MODULES = {module.description.name: module.description for module in (Process, Socket, Timer, User)}
UID = os.geteuid()


def says(text: str, *, main: bool = True) -> Configuration:
    return interpret([parse("f.toml", text, main=main)], MODULES)


def problems(text: str, *, main: bool = True) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        says(text, main=main)
    return [str(problem) for problem in caught.value.problems]


def rule(more: str = "", **keys: str) -> str:
    known = {"name": '"it"', "subject": "{ all = true }", "module": '"timer"', "effect": '"deny"', **keys}
    lines = [f"{key} = {value}" for key, value in known.items() if value]
    return "\n".join(["[[rule]]", *lines, more]) + "\n"


# Good ones.


def test_nothing_says_the_defaults():
    configuration = says("")
    assert configuration.limits == Limits()
    assert configuration.policy.rules == ()
    assert configuration.log_level == ""
    assert read("/nonexistent", uid=UID) == []


def test_the_examples_are_good_and_the_main_one_says_the_defaults():
    sources = [read_file(str(EXAMPLES / "aemd.toml")), read_file(str(EXAMPLES / "policy.d/50-example.toml"))]
    configuration = interpret(sources, MODULES)
    assert configuration.limits == Limits()
    assert [rule.name for rule in configuration.policy.rules] == [
        "web",
        "operators",
        "containers",
        "guests-have-timers",
        "guests",
    ]
    assert not configuration.warnings
    web = configuration.policy.rules[0]
    assert web.grants == {"port"}
    assert web.redactions == ("peer", "credentials.pid")
    assert web.origin.endswith("50-example.toml:4")
    assert len(configuration.policy.quota_rules) == 2


def test_the_examples_mean_what_stands_in_them():
    policy = says(RULES).policy
    web = Principal(
        Owner(33), 33, (), 5, 1, administrator=False, unit="web.service", cgroup="/a", proven=True
    )

    def decides(who: Principal, module: str, **values: str) -> str:
        return policy.decide(who, module, values).name

    assert decides(web, "socket", listen="tcp::443") == "web"
    assert decides(web, "socket", listen="tcp::8080") == "own-rights"
    guest = Principal(Owner(65534), 65534, (), 5, 1, administrator=False)
    assert decides(guest, "timer") == "guests-have-timers"
    assert decides(guest, "user") == "guests"
    assert policy.quota(guest)[0].jobs == 20_000


def test_numbers_may_have_a_unit():
    limits = says('[limits]\nlease_ns = "1min 5s"\nqueue_bytes = "64K"\nqueue_depth = 5\n').limits
    assert (limits.lease_ns, limits.queue_bytes, limits.queue_depth) == (65_000_000_000, 65_536, 5)
    quota = '[[quota]]\nname = "q"\nsubject = { uid = 7 }\n'
    quota += 'queue_bytes = "1GiB"\nbytes_per_second = "1M"\njobs = 0\n'
    (found,) = says(quota).policy.quota_rules
    assert found.limits == {"queue_bytes": 1 << 30, "bytes_per_second": 1 << 20, "jobs": 0}


def test_files_count_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "policy.d"
    folder.mkdir()
    for name in ("20-b.toml", "10-a.toml", ".hidden.toml", "30-c.toml~", "README"):
        number = name[:2]
        text = rule(name=f'"r{number}"', subject=f"{{ uid = {number} }}") if number.isdigit() else "?"
        (folder / name).write_text(text)
    (tmp_path / "aemd.toml").write_text(rule(name='"main"', subject="{ uid = 1 }"))
    configuration = interpret(read(str(tmp_path), uid=UID), MODULES)
    assert [rule.name for rule in configuration.policy.rules] == ["main", "r10", "r20"]
    assert [os.path.basename(file) for file in configuration.files] == ["aemd.toml", "10-a.toml", "20-b.toml"]


# Typos: in every key of the examples.


def typos(text: str) -> list[tuple[int, str, str]]:
    """Every key of `text` with one letter too many: its line, the key, and the text with the typo."""
    found = []
    for row, line in enumerate(text.split("\n"), 1):
        code = line.split("#")[0] if '"' not in line.split("#")[0] or line.startswith("#") else line
        keys = list(re.finditer(r"\b([a-z_]+)\b(?=\s*=)|(?<=\[)([a-z]+)(?=\])", code))
        for match in keys:
            typo = match.group() + "x"
            lines = text.split("\n")
            lines[row - 1] = line[: match.start()] + typo + line[match.end() :]
            found.append((row, typo, "\n".join(lines)))
    return found


ALL_TYPOS = [*typos(RULES), *typos((EXAMPLES / "aemd.toml").read_text())]


def test_typos_are_made_of_every_key():
    keys = {typo.removesuffix("x") for _, typo, _ in ALL_TYPOS}
    assert {"rule", "quota", "log", "limits", "name", "subject", "module", "params", "effect", "grant"} < keys
    assert {"redact", "uid", "gid", "user", "group", "unit", "cgroup", "all", "listen", "level"} < keys
    assert len(ALL_TYPOS) > 60


@pytest.mark.parametrize(("line", "key", "text"), ALL_TYPOS)
def test_a_typo_in_any_key_is_refused_with_file_line_and_key(line, key, text):
    told = problems(text)
    assert any(re.match(rf"f\.toml:{line}: (.*\.)?{key}: ", each) for each in told), told


# Wrong values.

WRONG = [
    ("a = 1", "f.toml:1: a: no such table; there are rule, quota, limits, log"),
    ("rules = 1", "f.toml:1: rules: no such table; did you mean rule?"),
    ("limits = 1", "f.toml:1: limits: 1: must be a table, [limits]"),
    ("[log]\nlevel = 1", 'f.toml:2: log.level: 1: must be "debug", "info", "warning" or "error"'),
    ('[log]\nlevel = "trace"', 'f.toml:2: log.level: "trace": must be "debug", "info", "warning" or "error"'),
    ("[limits]\nqueue_depht = 1", "f.toml:2: limits.queue_depht: no such limit; did you mean queue_depth?"),
    ("[limits]\nqueue_depth = 0", "f.toml:2: limits.queue_depth: 0: must be 1 to"),
    ("[limits]\nqueue_depth = true", "f.toml:2: limits.queue_depth: true: must be a whole number"),
    ("[limits]\nqueue_depth = 1.5", "f.toml:2: limits.queue_depth: 1.5: must be a whole number"),
    ('[limits]\nqueue_depth = "1"', 'f.toml:2: limits.queue_depth: "1": must be a whole number'),
    ('[limits]\nlease_ns = "1 fortnight"', 'f.toml:2: limits.lease_ns: "1 fortnight": '),
    (
        "[limits]\nqueue_depth = 70000",
        "f.toml:2: limits.queue_depth: queue_depth is 70000, above queue_depth_max",
    ),
    ("rule = 1", "f.toml:1: rule: 1: must be an array of tables, [[rule]]"),
    ("rule = [1]", "f.toml:1: rule[1]: 1: must be a table"),
    ("[rule]\nx = 1", "f.toml:1: rule: a table: must be an array of tables, [[rule]]"),
    (rule(name=""), "f.toml:1: rule[1].name: is missing"),
    (rule(effect=""), "f.toml:1: rule[1].effect: is missing"),
    (rule(subject=""), "f.toml:1: rule[1].subject: is missing"),
    (rule(module=""), "f.toml:1: rule[1].module: is missing"),
    (rule(name='"a b"'), 'f.toml:2: rule[1].name: "a b": must be a name of'),
    (
        rule(name='"own-rights"'),
        'f.toml:2: rule[1].name: "own-rights": there is one of this name, a built-in rule',
    ),
    (rule(effect='"alw"'), 'f.toml:5: rule[1].effect: "alw": must be "allow" or "deny"'),
    (rule(subject="{}"), "f.toml:3: rule[1].subject: names nobody; there are uid, gid,"),
    (rule(subject="{ all = false }"), "f.toml:3: rule[1].subject.all: false: must be true, or left out"),
    (rule(subject="{ all = true, uid = 1 }"), "f.toml:3: rule[1].subject: all = true contradicts uid"),
    (rule(subject='{ uid = "x" }'), 'f.toml:3: rule[1].subject.uid: "x": must be a number, or a list'),
    (rule(subject="{ uid = [1, -1] }"), "f.toml:3: rule[1].subject.uid[2]: -1: must be"),
    (rule(subject="{ uid = 4294967295 }"), "f.toml:3: rule[1].subject.uid: 4294967295: must be"),
    (rule(subject="{ uid = [] }"), "f.toml:3: rule[1].subject.uid: an empty list: must be"),
    (
        rule(subject='{ user = "nobdy" }'),
        'f.toml:3: rule[1].subject.user: "nobdy": there is no such user; did you mean nobody?',
    ),
    (
        rule(subject='{ user = "1000" }'),
        'f.toml:3: rule[1].subject.user: "1000": there is no such user; for a number write uid = 1000',
    ),
    (
        rule(subject='{ group = ["root", "rot"] }'),
        'f.toml:3: rule[1].subject.group[2]: "rot": there is no such group; did you mean root?',
    ),
    (
        rule(subject='{ user = "root", uid = 1 }'),
        "f.toml:3: rule[1].subject.user: contradicts uid: nobody is both",
    ),
    (
        rule(subject='{ cgroup = "system.slice" }'),
        'f.toml:3: rule[1].subject.cgroup: "system.slice": must be a path from /',
    ),
    (
        rule(subject='{ cgroup = ["/a", "/a/../b"] }'),
        'f.toml:3: rule[1].subject.cgroup[2]: "/a/../b": must be a path',
    ),
    (
        rule(subject='{ unit = "/a.service" }'),
        'f.toml:3: rule[1].subject.unit: "/a.service": must be the name of a unit',
    ),
    (rule('grant = ["port"]'), 'f.toml:6: rule[1].grant: has no meaning with effect = "deny"'),
    (rule('redact = ["cookie"]'), 'f.toml:6: rule[1].redact: has no meaning with effect = "deny"'),
    (
        rule('grant = ["prot"]', effect='"allow"'),
        'f.toml:6: rule[1].grant[1]: "prot": no such grant; did you mean port?',
    ),
    (rule('grant = "port"', effect='"allow"'), 'f.toml:6: rule[1].grant: "port": must be a list of grants'),
    (
        rule("grant = []", effect='"allow"'),
        "f.toml:6: rule[1].grant: an empty list: must be a list of grants",
    ),
    (
        rule('params = { evry = "1s" }'),
        "f.toml:6: rule[1].params.evry: module timer has no such parameter; did you mean every?",
    ),
    (rule("params = { every = 1 }"), "f.toml:6: rule[1].params.every: 1: must be text, or a list of texts"),
    (rule('params = { every = ["1s", 2] }'), "f.toml:6: rule[1].params.every[2]: 2: must be text"),
    (
        rule('params = { pid = "1" }', module='["process", "timer"]'),
        "f.toml:6: rule[1].params.pid: module timer has no such parameter",
    ),
    (
        rule('params = { nix = "1" }', module='"*"'),
        "f.toml:6: rule[1].params.nix: module process has no such parameter",
    ),
    (
        rule('redact = ["cokie"]', effect='"allow"'),
        'f.toml:6: rule[1].redact[1]: "cokie": module timer: its events have no field cokie; did you',
    ),
    (
        rule('redact = ["peer.hots"]', effect='"allow"', module='"socket"'),
        (
            'f.toml:6: rule[1].redact[1]: "peer.hots": module socket: its events have no field peer.hots; '
            "did you mean peer.host?"
        ),
    ),
    (rule() + rule(effect='"allow"'), 'f.toml:8: rule[2].name: "it": there is one of this name, f.toml:1'),
    (
        rule() + rule(name='"b"', effect='"allow"'),
        "f.toml:11: rule[2].effect: contradicts rule it, f.toml:1, which says the opposite of the same",
    ),
    (
        rule() + rule(name='"b"'),
        "f.toml:8: rule[2].name: can never apply: rule it, f.toml:1, stands before it and covers it",
    ),
    (
        rule(module='"t*"') + rule(name='"b"', subject="{ uid = 1 }"),
        "f.toml:8: rule[2].name: can never apply: rule it",
    ),
    (
        '[[quota]]\nname = "q"\nsubject = { all = true }',
        "f.toml:1: quota[1]: sets nothing; there are sessions,",
    ),
    ('[[quota]]\nname = "q"\njobs = 1', "f.toml:1: quota[1].subject: is missing"),
    (
        '[[quota]]\nname = "q"\nsubject = { all = true }\njbos = 1',
        "f.toml:4: quota[1].jbos: no such resource; did you mean jobs?",
    ),
    (
        '[[quota]]\nname = "q"\nsubject = { all = true }\njobs = -1',
        "f.toml:4: quota[1].jobs: -1: must be 0 to",
    ),
    ("a = ", "f.toml:1: a: this is no TOML: "),
    ("[limits]\nx = 1\nx = 2", "f.toml:3: x: this is no TOML: "),
    ("[limits]\n[limits]", "f.toml:2: limits: this is no TOML: "),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_is_wrong_is_told_with_line_key_value_and_what_is_possible(text, told):
    assert problems(text)[0].startswith(told)


def test_everything_is_told_at_once():
    told = problems("[limits]\na = 1\nb = 2\n[log]\nlevel = 1\n" + rule(effect='"x"', subject="{ uid = -1 }"))
    assert [each.split(":")[1] for each in told] == ["2", "3", "5", "8", "10"]


def test_policy_files_hold_rules_and_quotas_only():
    for table in ("limits", "log"):
        (told,) = problems(f"[{table}]\n", main=False)
        assert told == f"f.toml:1: {table}: only aemd.toml may have it; files of policy.d have rule and quota"


def test_quotas_that_can_never_apply_are_refused():
    first = '[[quota]]\nname = "a"\nsubject = { all = true }\njobs = 1\n'
    told = problems(first + '[[quota]]\nname = "b"\nsubject = { uid = 1 }\nsessions = 1\njobs = 2\n')
    assert told[0].startswith("f.toml:9: quota[2].jobs: can never apply: quota a, f.toml:1, is before it")
    assert says(first + '[[quota]]\nname = "b"\nsubject = { uid = 1 }\nsessions = 1\n')


def test_a_module_that_is_not_loaded_is_a_warning():
    configuration = says(rule('params = { x = "1" }', module='["sokcet", "timer2"]'))
    assert [str(warning) for warning in configuration.warnings] == [
        (
            'f.toml:4: rule[1].module[1]: "sokcet": no such module is loaded; did you mean socket?; '
            "nothing else can be said"
        ),
        (
            'f.toml:4: rule[1].module[2]: "timer2": no such module is loaded; did you mean timer?; '
            "nothing else can be said"
        ),
    ]
    assert interpret([parse("f", rule(module='"sokcet"'), main=False)]).warnings == ()


def test_rules_are_bounded():
    text = "".join(rule(name=f'"r{n}"', subject=f"{{ uid = {n} }}") for n in range(RULES_MAX + 1))
    assert f"more than {RULES_MAX} rules" in problems(text)[0]


# Who may write them.


def test_files_that_others_may_write_are_refused(tmp_path):
    folder = tmp_path / "policy.d"
    folder.mkdir()
    (tmp_path / "aemd.toml").write_text("")
    (folder / "a.toml").write_text("")

    def told() -> str:
        with pytest.raises(ConfigurationError) as caught:
            read(str(tmp_path), uid=UID)
        return str(caught.value)

    assert len(read(str(tmp_path), uid=UID)) == 2
    for path in (tmp_path, tmp_path / "aemd.toml", folder, folder / "a.toml"):
        mode = path.stat().st_mode & 0o777
        for wrong in (0o020, 0o002):
            path.chmod(mode | wrong)
            assert told().startswith(f"{path}: has mode "), path
        path.chmod(mode)
    assert len(read(str(tmp_path), uid=UID)) == 2


@pytest.mark.skipif(UID != 0, reason="needs root: files are given away")
def test_files_of_others_are_refused_unless_they_are_roots(tmp_path):
    (tmp_path / "aemd.toml").write_text("")
    os.chown(tmp_path / "aemd.toml", 65534, 65534)
    for uid in (0, 1000):
        with pytest.raises(ConfigurationError, match="belongs to uid 65534; it must belong to"):
            read(str(tmp_path), uid=uid)
    assert len(read(str(tmp_path), uid=65534)) == 1
    os.chown(tmp_path / "aemd.toml", 0, 0)
    assert len(read(str(tmp_path), uid=65534)) == 1


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "aemd.toml")
    with pytest.raises(ConfigurationError, match="is not a regular file"):
        read(str(tmp_path), uid=UID)
    (tmp_path / "aemd.toml").unlink()
    (tmp_path / "policy.d").write_text("")
    with pytest.raises(ConfigurationError, match="is not a directory"):
        read(str(tmp_path), uid=UID)


def test_what_is_too_long_or_no_text_is_refused(tmp_path):
    file = tmp_path / "aemd.toml"
    file.write_bytes(b"# ok\n# \xff\n")
    with pytest.raises(ConfigurationError, match=r"aemd.toml:2: byte 0xff is no UTF-8"):
        read(str(tmp_path), uid=UID)
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigurationError, match="has more than"):
        read(str(tmp_path), uid=UID)
    file.unlink()
    file.symlink_to("/nonexistent")
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read(str(tmp_path), uid=UID)


def test_an_empty_policy_has_no_rules():
    assert Policy().rules == ()
