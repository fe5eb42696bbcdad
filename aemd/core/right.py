"""One function decides what a principal may have.

It allows what the caller could have without the daemon: processes of its own uid, ports from 1024 and
abstract Unix names of its own network namespace, its own channels and jobs. Beyond that goes what a rule of
policy grants (core/policy.py), and the rest is the administrator's. What is opened as the caller
(modules/need.py) is decided by the kernel, and not here. Modules state facts as an `Act`; they do not decide.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from aemd.core.errors import AemError, Code
from aemd.core.policy import Ruling
from aemd.core.principal import Owner, Principal

PORT_UNPRIVILEGED_MIN = 1024  # ip_unprivileged_port_start of ip(7), its default
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Act:
    """What a principal wants, in facts that the module has looked up.

    `what` says it in a few words for the error message. Every other field that is set must be allowed.
    `owner`: whose object it is, and `of`: which grant gives another's, process or channel; none does where
    it is empty. `network`: it happens in the daemon's network namespace. `port`: a port to be bound.
    `path`: a file-system path that the daemon opens with its own rights. `privileged`: only for the
    administrator whatever the rest says. `hidden`: the refusal must not differ from "does not exist".
    """

    what: str
    owner: Owner | None = None
    of: str = ""
    network: bool = False
    port: int | None = None
    path: bytes | None = None
    privileged: bool = False
    hidden: bool = False


def right(principal: Principal, act: Act, ruling: Ruling | None = None) -> AbstractSet[str]:
    """Return if `principal` may do `act`, else raise AemError; what was needed beyond its own rights is
    returned: the grants of `ruling`, what its job was registered under, that were used.

    PERMISSION_DENIED with reason NOT_ALLOWED, or NOT_FOUND for what is somebody else's.
    """
    if principal.administrator:
        return _NOTHING
    lacking = _lacking(principal, act)
    if not lacking:
        return _NOTHING
    granted = ruling.rule.grants if ruling is not None else _NOTHING
    for grant, refusal in lacking.items():
        if grant not in granted:
            raise _refused(principal, act, refusal, ruling)
    return lacking.keys()


def _refused(principal: Principal, act: Act, refusal: str, ruling: Ruling | None) -> AemError:
    if act.hidden:
        return AemError(Code.NOT_FOUND, "NOT_FOUND", f"{act.what}: not found")
    rule = f" (rule {ruling.rule.name} does not grant it)" if ruling is not None else ""
    return AemError(
        Code.PERMISSION_DENIED,
        "NOT_ALLOWED",
        f"{act.what}: not allowed for uid {principal.uid}: {refusal}{rule}",
        uid=principal.uid,
    )


def _lacking(principal: Principal, act: Act) -> dict[str, str]:
    """What `act` needs beyond the principal's own rights: the grant that gives it, empty where none does,
    and what is to be said if it is not given.
    """
    lacking = {}
    if act.privileged:
        lacking[""] = "only the administrator may do this"
    if act.owner is not None and act.owner != principal.owner:
        lacking[act.of] = "it belongs to another user"
    if act.network and principal.network_namespace:
        lacking["network"] = (
            "the daemon listens in its own network namespace, and the caller is in another one; run a daemon"
            " there with aemd --user, or ask as root"
        )
    if act.port is not None and 0 < act.port < PORT_UNPRIVILEGED_MIN:
        lacking["port"] = (
            f"port {act.port} is below {PORT_UNPRIVILEGED_MIN}; take a higher one, or ask as root"
        )
    if act.path is not None:
        lacking[""] = "it would be opened with the daemon's rights; ask as root"
    return lacking
