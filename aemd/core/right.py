"""One function decides what a principal may have.

Until there is policy it allows what the caller could have without the daemon: processes of its own uid,
ports from 1024 and abstract Unix names of its own network namespace, its own channels and jobs. The rest is
the administrator's. Modules state facts as an `Act`; they do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from aemd.core.errors import AemError, Code
from aemd.core.principal import Owner, Principal

PORT_UNPRIVILEGED_MIN = 1024  # ip_unprivileged_port_start of ip(7), its default


@dataclass(frozen=True, slots=True)
class Act:
    """What a principal wants, in facts that the module has looked up.

    `what` says it in a few words for the error message. Every other field that is set must be allowed.
    `owner`: whose object it is. `network`: it happens in the daemon's network namespace. `port`: a port to be
    bound. `path`: a file-system path to be bound or opened. `privileged`: only for the administrator whatever
    the rest says. `hidden`: the refusal must not differ from "does not exist".
    """

    what: str
    owner: Owner | None = None
    network: bool = False
    port: int | None = None
    path: bytes | None = None
    privileged: bool = False
    hidden: bool = False


def right(principal: Principal, act: Act) -> None:
    """Return if `principal` may do `act`, else raise AemError.

    PERMISSION_DENIED with reason NOT_ALLOWED, or NOT_FOUND for what is somebody else's.
    """
    if principal.administrator:
        return
    refusal = _refusal(principal, act)
    if refusal is None:
        return
    if act.hidden:
        raise AemError(Code.NOT_FOUND, "NOT_FOUND", f"{act.what}: not found")
    raise AemError(
        Code.PERMISSION_DENIED,
        "NOT_ALLOWED",
        f"{act.what}: not allowed for uid {principal.uid}: {refusal}",
        uid=principal.uid,
    )


def _refusal(principal: Principal, act: Act) -> str | None:
    if act.privileged:
        return "only the administrator may do this"
    if act.owner is not None and act.owner != principal.owner:
        return "it belongs to another user"
    if act.network and principal.network_namespace:
        return (
            "the daemon listens in its own network namespace, and the caller is in another one; run a daemon"
            " there with aemd --user, or ask as root"
        )
    if act.port is not None and 0 < act.port < PORT_UNPRIVILEGED_MIN:
        return f"port {act.port} is below {PORT_UNPRIVILEGED_MIN}; take a higher one, or ask as root"
    if act.path is not None:
        return "paths are opened with the daemon's rights; take an abstract name, or ask as root"
    return None
