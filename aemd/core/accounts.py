"""What each user has, charged before it is allocated and refunded when it goes.

A user is a uid, whatever namespaces its processes are in: who makes a namespace gets no second quota.
"""

from __future__ import annotations

from aemd.core.errors import exhausted
from aemd.core.limits import Limits


class Account:
    """What one uid has now."""

    __slots__ = ("jobs", "sessions", "uid")

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.sessions = 0
        self.jobs = 0


class Accounts:
    """The accounts of all users."""

    __slots__ = ("_accounts", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._accounts: dict[int, Account] = {}

    def find(self, uid: int) -> Account | None:
        """The account of `uid`, if it has anything."""
        return self._accounts.get(uid)

    def charge_session(self, uid: int) -> Account:
        """One session more; AemError RESOURCE_EXHAUSTED."""
        account = self._accounts.get(uid)
        if account is None:
            account = Account(uid)
        limit = self._limits.sessions_per_uid
        if account.sessions >= limit:
            raise exhausted(
                f"uid {uid}",
                limit=limit,
                used=account.sessions,
                key="sessions_per_uid",
                what="too many sessions",
            )
        self._accounts[uid] = account
        account.sessions += 1
        return account

    def refund_session(self, account: Account) -> None:
        """One session less."""
        account.sessions -= 1
        if not account.sessions:
            del self._accounts[account.uid]

    def charge_job(self, account: Account, session_jobs: int) -> None:
        """One job more, in a session that has `session_jobs`; AemError RESOURCE_EXHAUSTED."""
        limits = self._limits
        if session_jobs >= limits.jobs_per_session:
            raise exhausted(
                "the session",
                limit=limits.jobs_per_session,
                used=session_jobs,
                key="jobs_per_session",
                what="too many jobs",
                way_out="or open another session",
            )
        if account.jobs >= limits.jobs_per_uid:
            raise exhausted(
                f"uid {account.uid}",
                limit=limits.jobs_per_uid,
                used=account.jobs,
                key="jobs_per_uid",
                what="too many jobs",
            )
        account.jobs += 1

    def refund_job(self, account: Account) -> None:
        """One job less."""
        account.jobs -= 1
