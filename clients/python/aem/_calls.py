"""The unary calls of the sync face: status, and lists and changes of jobs, modules and sessions.

They go over a connection of their own, so that no list waits behind events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from aem import _channel, _unary
from aem._registration import default_acknowledgement
from aem.errors import from_rpc
from aem.execution import Exec
from aem.history import Keep, Parked
from aem.options import Options, Param
from aem.v1 import admin_pb2, job_pb2, module_pb2

CALL_SECONDS = 30.0


class Calls:
    """The unary calls, sync."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._unary: grpc.Channel | None = None

    def _call(self, method: _unary.Method[Any, _unary.Answer], request: Any) -> _unary.Answer:
        if self._unary is None:
            _channel.note_channel()
            self._unary = grpc.insecure_channel(self._address, options=_channel.OPTIONS)
        call = self._unary.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        try:
            return call(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise _channel.explain(from_rpc(error), self._address) from None

    def _hang_up(self) -> None:
        if self._unary is not None:
            self._unary.close()
            self._unary = None

    def status(self) -> admin_pb2.DaemonStatus:
        """How the daemon does."""
        return self._call(_unary.GET_STATUS, admin_pb2.GetStatusRequest())

    def metrics(self, jobs: int = 0) -> admin_pb2.GetMetricsResponse:
        """Everything that is counted, and of so many jobs one by one: the caller's, for the administrator
        everybody's and the daemon's own.
        """
        return self._call(_unary.GET_METRICS, admin_pb2.GetMetricsRequest(jobs=jobs))

    def list_jobs(self, module: str | None = None, state: str | int | None = None) -> Iterator[job_pb2.Job]:
        """All jobs that the caller may see, by id, of one module or in one state if given."""
        token = ""
        while True:
            page = self._call(_unary.LIST_JOBS, _unary.list_jobs_request(module, state, token))
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def get_job(self, job_id: int | str) -> job_pb2.Job:
        """One job, also of another session; a durable one also by its name, here and below."""
        return self._call(_unary.GET_JOB, job_pb2.GetJobRequest(name=_unary.job_name(job_id)))

    def start_job(self, job_id: int | str) -> job_pb2.Job:
        """Arm a job."""
        return self._call(_unary.START_JOB, job_pb2.StartJobRequest(name=_unary.job_name(job_id)))

    def stop_job(self, job_id: int | str) -> job_pb2.Job:
        """Disarm a job."""
        return self._call(_unary.STOP_JOB, job_pb2.StopJobRequest(name=_unary.job_name(job_id)))

    def shutdown_job(self, job_id: int | str, deadline: float | None = None) -> job_pb2.Job:
        """End a job, after the handler that runs now, or after `deadline` seconds."""
        return self._call(_unary.SHUTDOWN_JOB, _unary.shutdown_request(job_id, deadline))

    def set_priority(self, job_id: int | str, priority: int) -> job_pb2.Job:
        """Change a job's priority, 0 to 7, 7 first."""
        return self._call(_unary.UPDATE_JOB, _unary.priority_request(job_id, priority))

    def create_job(
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

        client.create_job("deploys", "user", {"channel": "deploy"}, keep=aem.Keep(entries=1_000))
        client.create_job("deploys", "user", {"channel": "deploy"}, exec=aem.Exec(["/usr/bin/deploy"]))
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
        return self._call(_unary.CREATE_JOB, request)

    def list_parked(self, job: int | str) -> Iterator[Parked]:
        """What was put aside of a job because nobody could deal with it, by number."""
        token = ""
        while True:
            request = job_pb2.ListParkedRequest(name=_unary.job_name(job), page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_PARKED, request)
            for entry in page.entries:
                yield Parked.of(entry)
            token = page.next_page_token
            if not token:
                return

    def retry_parked(self, job: int | str, *cursors: tuple[int, int]) -> int:
        """Deliver what was put aside once more, all of it or what `cursors` name; returns how many entries.

        There must be a client that answers for the job.
        """
        return self._call(_unary.RETRY_PARKED, _unary.retry_request(job, cursors)).retried

    def list_modules(self) -> Iterator[module_pb2.Module]:
        """The loaded event modules, by name."""
        token = ""
        while True:
            request = module_pb2.ListModulesRequest(page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_MODULES, request)
            yield from page.modules
            token = page.next_page_token
            if not token:
                return

    def get_module(self, name: str) -> module_pb2.Module:
        """One event module, with its parameters, events and operations."""
        return self._call(_unary.GET_MODULE, module_pb2.GetModuleRequest(name=f"modules/{name}"))

    def load_module(self, name: str) -> module_pb2.Module:
        """Load an event module, or load it anew. Administrator only."""
        return self._call(_unary.LOAD_MODULE, module_pb2.LoadModuleRequest(name=f"modules/{name}"))

    def unload_module(self, name: str) -> int:
        """Remove an event module; returns how many jobs ended with it. Administrator only."""
        return self._call(_unary.UNLOAD_MODULE, module_pb2.UnloadModuleRequest(name=f"modules/{name}")).jobs

    def list_sessions(self) -> Iterator[admin_pb2.SessionInfo]:
        """The caller's sessions; for the administrator everybody's."""
        token = ""
        while True:
            request = admin_pb2.ListSessionsRequest(page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_SESSIONS, request)
            yield from page.sessions
            token = page.next_page_token
            if not token:
                return

    def list_quotas(self) -> Iterator[admin_pb2.UserQuota]:
        """What the caller's user has and may have; for the administrator every user that has anything."""
        token = ""
        while True:
            request = admin_pb2.ListQuotasRequest(page_size=1_000, page_token=token)
            page = self._call(_unary.LIST_QUOTAS, request)
            yield from page.users
            token = page.next_page_token
            if not token:
                return

    def end_session(self, session_id: int) -> int:
        """End a session; returns how many jobs ended with it."""
        return self._call(_unary.END_SESSION, admin_pb2.EndSessionRequest(name=f"sessions/{session_id}")).jobs

    def explain_policy(
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
        return self._call(_unary.EXPLAIN_POLICY, request)

    def reload_configuration(self) -> admin_pb2.ReloadConfigurationResponse:
        """Have the daemon read its configuration again. Administrator only."""
        return self._call(_unary.RELOAD_CONFIGURATION, admin_pb2.ReloadConfigurationRequest())
