"""The unary calls of the asyncio face: status, and lists and changes of jobs, modules and sessions.

They go over a connection of their own, so that no list waits behind events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from aem import _channel, _unary
from aem._registration import default_acknowledgement
from aem.errors import from_rpc
from aem.execution import Exec
from aem.history import Keep, Parked
from aem.options import Options, Param
from aem.v1 import admin_pb2, job_pb2, module_pb2

CALL_SECONDS = 30.0


class AsyncCalls:
    """The unary calls, asyncio."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._unary: grpc.aio.Channel | None = None

    async def _call(self, method: _unary.Method[Any, _unary.Answer], request: Any) -> _unary.Answer:
        if self._unary is None:
            _channel.note_channel()
            self._unary = grpc.aio.insecure_channel(self._address, options=_channel.OPTIONS)
        call = self._unary.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        try:
            return await call(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise _channel.explain(from_rpc(error), self._address) from None

    async def _hang_up(self) -> None:
        if self._unary is not None:
            await self._unary.close()
            self._unary = None

    async def status(self) -> admin_pb2.DaemonStatus:
        """How the daemon does."""
        return await self._call(_unary.GET_STATUS, admin_pb2.GetStatusRequest())

    async def metrics(self, jobs: int = 0) -> admin_pb2.GetMetricsResponse:
        """Everything that is counted, and of so many jobs one by one: the caller's, for the administrator
        everybody's and the daemon's own.
        """
        return await self._call(_unary.GET_METRICS, admin_pb2.GetMetricsRequest(jobs=jobs))

    async def list_jobs(
        self, module: str | None = None, state: str | int | None = None
    ) -> AsyncIterator[job_pb2.Job]:
        """All jobs that the caller may see, by id, of one module or in one state if given."""
        token = ""
        while True:
            page = await self._call(_unary.LIST_JOBS, _unary.list_jobs_request(module, state, token))
            for found in page.jobs:
                yield found
            token = page.next_page_token
            if not token:
                return

    async def get_job(self, job_id: int | str) -> job_pb2.Job:
        """One job, also of another session; a durable one also by its name, here and below."""
        return await self._call(_unary.GET_JOB, job_pb2.GetJobRequest(name=_unary.job_name(job_id)))

    async def start_job(self, job_id: int | str) -> job_pb2.Job:
        """Arm a job."""
        return await self._call(_unary.START_JOB, job_pb2.StartJobRequest(name=_unary.job_name(job_id)))

    async def stop_job(self, job_id: int | str) -> job_pb2.Job:
        """Disarm a job."""
        return await self._call(_unary.STOP_JOB, job_pb2.StopJobRequest(name=_unary.job_name(job_id)))

    async def shutdown_job(self, job_id: int | str, deadline: float | None = None) -> job_pb2.Job:
        """End a job, after the handler that runs now, or after `deadline` seconds."""
        return await self._call(_unary.SHUTDOWN_JOB, _unary.shutdown_request(job_id, deadline))

    async def set_priority(self, job_id: int | str, priority: int) -> job_pb2.Job:
        """Change a job's priority, 0 to 7, 7 first."""
        return await self._call(_unary.UPDATE_JOB, _unary.priority_request(job_id, priority))

    async def create_job(
        self,
        name: str,
        module: str,
        params: Mapping[str, Param] | None = None,
        *,
        options: Options | None = None,
        keep: Keep | None = None,
        label: str = "",
        start: bool = True,
        exec: Exec | None = None,  # noqa: A002 - the word of the protocol
    ) -> job_pb2.Job:
        """Make a durable job, without a handler: it outlives this program, the daemon and the machine. With
        `exec` the daemon runs that command for its events.

        Made again with the same definition it is the one that is there; with another one AemError, code
        ALREADY_EXISTS, says what differs.

        await client.create_job("deploys", "user", {"channel": "deploy"}, keep=aem.Keep(entries=1_000))
        await client.create_job("deploys", "user", {"channel": "deploy"}, exec=aem.Exec(["/usr/bin/deploy"]))
        """
        request = _unary.create_request(
            name,
            module,
            params or {},
            options=options,
            acknowledgement=default_acknowledgement(module),
            keep=keep,
            label=label,
            start=start,
            execution=exec,
        )
        return await self._call(_unary.CREATE_JOB, request)

    async def list_parked(self, job: int | str) -> AsyncIterator[Parked]:
        """What was put aside of a job because nobody could deal with it, by number."""
        token = ""
        while True:
            request = job_pb2.ListParkedRequest(name=_unary.job_name(job), page_size=1_000, page_token=token)
            page = await self._call(_unary.LIST_PARKED, request)
            for entry in page.entries:
                yield Parked.of(entry)
            token = page.next_page_token
            if not token:
                return

    async def retry_parked(self, job: int | str, *cursors: tuple[int, int]) -> int:
        """Deliver what was put aside once more, all of it or what `cursors` name; returns how many entries.

        There must be a client that answers for the job.
        """
        return (await self._call(_unary.RETRY_PARKED, _unary.retry_request(job, cursors))).retried

    async def list_modules(self) -> AsyncIterator[module_pb2.Module]:
        """The loaded event modules, by name."""
        token = ""
        while True:
            request = module_pb2.ListModulesRequest(page_size=1_000, page_token=token)
            page = await self._call(_unary.LIST_MODULES, request)
            for found in page.modules:
                yield found
            token = page.next_page_token
            if not token:
                return

    async def get_module(self, name: str) -> module_pb2.Module:
        """One event module, with its parameters, events and operations."""
        return await self._call(_unary.GET_MODULE, module_pb2.GetModuleRequest(name=f"modules/{name}"))

    async def load_module(self, name: str) -> module_pb2.Module:
        """Load an event module, or load it anew. Administrator only."""
        return await self._call(_unary.LOAD_MODULE, module_pb2.LoadModuleRequest(name=f"modules/{name}"))

    async def unload_module(self, name: str) -> int:
        """Remove an event module; returns how many jobs ended with it. Administrator only."""
        return (
            await self._call(_unary.UNLOAD_MODULE, module_pb2.UnloadModuleRequest(name=f"modules/{name}"))
        ).jobs

    async def list_sessions(self) -> AsyncIterator[admin_pb2.SessionInfo]:
        """The caller's sessions; for the administrator everybody's."""
        token = ""
        while True:
            request = admin_pb2.ListSessionsRequest(page_size=1_000, page_token=token)
            page = await self._call(_unary.LIST_SESSIONS, request)
            for found in page.sessions:
                yield found
            token = page.next_page_token
            if not token:
                return

    async def list_quotas(self) -> AsyncIterator[admin_pb2.UserQuota]:
        """What the caller's user has and may have; for the administrator every user that has anything."""
        token = ""
        while True:
            request = admin_pb2.ListQuotasRequest(page_size=1_000, page_token=token)
            page = await self._call(_unary.LIST_QUOTAS, request)
            for found in page.users:
                yield found
            token = page.next_page_token
            if not token:
                return

    async def end_session(self, session_id: int) -> int:
        """End a session; returns how many jobs ended with it."""
        return (
            await self._call(_unary.END_SESSION, admin_pb2.EndSessionRequest(name=f"sessions/{session_id}"))
        ).jobs

    async def explain_policy(
        self,
        module: str,
        params: Mapping[str, Param] | None = None,
        *,
        uid: int | None = None,
        gid: int | None = None,
        unit: str = "",
        cgroup: str = "",
    ) -> admin_pb2.ExplainPolicyResponse:
        """Whether a job with these parameters may be registered, and why: for the caller, as administrator
        for anybody.
        """
        request = _unary.explain_request(module, params or {}, uid=uid, gid=gid, unit=unit, cgroup=cgroup)
        return await self._call(_unary.EXPLAIN_POLICY, request)

    async def reload_configuration(self) -> admin_pb2.ReloadConfigurationResponse:
        """Have the daemon read its configuration again. Administrator only."""
        return await self._call(_unary.RELOAD_CONFIGURATION, admin_pb2.ReloadConfigurationRequest())
