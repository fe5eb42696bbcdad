"""Why something could not be done as the caller, in the words of the API.

An errno is what the caller itself would have met; nothing is added to it that the caller could not learn.
"""

from __future__ import annotations

import errno
import os

from aemd.core.errors import AemError, Code, exhausted, invalid
from aemd.core.limits import SECOND
from aemd.core.principal import Principal
from aemd.deputy.protocol import BECOMING, Answer, Fault
from aemd.modules.need import AdoptPath, BindPath, Errand, ListenPath, OpenPath, SendPath
from aemd.sources.bound import refusal as socket_refusal

TOO_LONG = (errno.EMSGSIZE, errno.ENOBUFS)


def busy(principal: Principal, limit: int) -> AemError:
    """Its turn did not come."""
    return exhausted(
        f"uid {principal.uid}",
        limit=limit,
        used=limit,
        key="quota.children",
        what="one more process that looks at paths for the user",
        way_out="those that run wait for a file system that does not answer",
    )


def refusal(principal: Principal, need: Errand, answer: Answer, limit_ns: int) -> AemError:
    """The error for the caller."""
    need = need.bind if isinstance(need, AdoptPath) else need
    shown = _shown(need)
    if answer.error >= Fault.TIMEOUT:
        return _fault(principal, shown, answer, limit_ns)
    name = errno.errorcode.get(answer.error, str(answer.error))
    said = os.strerror(answer.error)
    if answer.call == BECOMING or answer.call.startswith("/proc/"):
        return AemError(
            Code.UNAVAILABLE,
            "DEPUTY_POWERLESS",
            f"{shown}: the daemon cannot act as uid {principal.uid}: {answer.call}: {said}; it needs"
            " CAP_SETUID, CAP_SETGID, CAP_SETPCAP, CAP_SYS_CHROOT and CAP_SYS_PTRACE",
            errno=name,
            call=answer.call,
        )
    error = OSError(answer.error, said)
    who = f"uid {principal.uid}"
    if isinstance(need, BindPath | ListenPath):
        return socket_refusal(
            answer.call, need.place if isinstance(need, BindPath) else need.bound.place, error, who
        )
    if isinstance(need, SendPath):
        return _send_refused(shown, name, said, len(need.data))
    return _open_refused(need, shown, answer, who)


def _open_refused(need: OpenPath, shown: str, answer: Answer, who: str) -> AemError:
    name, said = errno.errorcode.get(answer.error, ""), f"{shown}: {os.strerror(answer.error)}"
    facts = {"field": need.field, "errno": name, "call": answer.call}
    if answer.error in (errno.EACCES, errno.EPERM):
        message = f"{need.field}: {said}: {who} may not do this"
        return AemError(Code.PERMISSION_DENIED, "NOT_ALLOWED", message, **facts)
    if answer.error in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
        return AemError(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{need.field}: {said}", **facts)
    return AemError(Code.FAILED_PRECONDITION, "SYSTEM_CALL_FAILED", f"{need.field}: {said}", **facts)


def _send_refused(shown: str, name: str, said: str, size: int) -> AemError:
    facts = {"peer": shown, "errno": name}
    if name == "EAGAIN":
        message = f"{shown}: the peer's queue is full; send again later"
        return AemError(Code.RESOURCE_EXHAUSTED, "PEER_BUSY", message, **facts)
    if name in ("EMSGSIZE", "ENOBUFS"):
        return invalid("data", f"{size} bytes are too long for one datagram to {shown}", **facts)
    return AemError(Code.FAILED_PRECONDITION, "PEER_UNREACHABLE", f"{shown}: sendto: {said}", **facts)


def _fault(principal: Principal, shown: str, answer: Answer, limit_ns: int) -> AemError:
    code, reason, said = _FAULTS[Fault(answer.error)]
    message = said.format(uid=principal.uid, seconds=limit_ns / SECOND, by=answer.call or "the deputy's end")
    return AemError(code, reason, f"{shown}: {message}")


_FAULTS = {
    Fault.TIMEOUT: (
        Code.DEADLINE_EXCEEDED,
        "PATH_TIMEOUT",
        "no answer within {seconds:g} s; a file system on the way does not answer",
    ),
    Fault.KILLED: (
        Code.ABORTED,
        "DEPUTY_LOST",
        "the process that acted as uid {uid} was killed ({by}); ask again",
    ),
    Fault.GONE: (Code.FAILED_PRECONDITION, "CALLER_GONE", "the process that asked for it has exited"),
    Fault.PROCFS: (
        Code.PERMISSION_DENIED,
        "NOT_ALLOWED",
        "it lies in a proc file system, where a path means something else to everybody who looks",
    ),
    Fault.ELSEWHERE: (
        Code.FAILED_PRECONDITION,
        "OTHER_ROOT",
        (
            "the caller has another root directory or mount namespace, and this daemon is not root; ask the"
            " system's daemon, or run one there"
        ),
    ),
    Fault.ANOTHER: (
        Code.PERMISSION_DENIED,
        "NOT_ALLOWED",
        "this daemon is not root and acts for its own user only, not for uid {uid}; ask the system's daemon",
    ),
    Fault.KIND: (Code.INVALID_ARGUMENT, "INVALID_FIELD", "it is neither a regular file nor a directory"),
    Fault.MOVED: (
        Code.ABORTED,
        "PATH_MOVED",
        "the path leads somewhere else than a moment ago, or its socket was removed; register anew",
    ),
    Fault.AWAY: (
        Code.FAILED_PRECONDITION,
        "OTHER_ROOT",
        (
            "the caller has another root directory or mount namespace than the machine, and what is durable"
            " is done again when the caller is gone"
        ),
    ),
    Fault.UNKNOWN: (Code.NOT_FOUND, "NOT_FOUND", "there is no user {uid} in the user database"),
}


def _shown(need: BindPath | ListenPath | OpenPath | SendPath) -> str:
    match need:
        case BindPath():
            return str(need.place)
        case ListenPath():
            return str(need.bound.place)
        case OpenPath() | SendPath():
            return need.path.decode("utf-8", "backslashreplace")
