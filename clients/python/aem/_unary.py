"""The unary calls, in one table for both faces: method, request class, answer class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from aem.execution import Exec
from aem.history import Keep
from aem.options import Options, Param, values_of
from aem.v1 import admin_pb2, job_pb2, module_pb2

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Answer]):
    """One unary method."""

    path: str
    request: type[Request]
    answer: type[Answer]


_ADMIN = "/aem.v1.AdminService"
_JOB = "/aem.v1.JobService"
_MODULE = "/aem.v1.ModuleService"

GET_STATUS = Method(f"{_ADMIN}/GetStatus", admin_pb2.GetStatusRequest, admin_pb2.DaemonStatus)
LIST_SESSIONS = Method(
    f"{_ADMIN}/ListSessions", admin_pb2.ListSessionsRequest, admin_pb2.ListSessionsResponse
)
END_SESSION = Method(f"{_ADMIN}/EndSession", admin_pb2.EndSessionRequest, admin_pb2.EndSessionResponse)
LIST_QUOTAS = Method(f"{_ADMIN}/ListQuotas", admin_pb2.ListQuotasRequest, admin_pb2.ListQuotasResponse)
GET_METRICS = Method(f"{_ADMIN}/GetMetrics", admin_pb2.GetMetricsRequest, admin_pb2.GetMetricsResponse)
EXPLAIN_POLICY = Method(
    f"{_ADMIN}/ExplainPolicy", admin_pb2.ExplainPolicyRequest, admin_pb2.ExplainPolicyResponse
)
RELOAD_CONFIGURATION = Method(
    f"{_ADMIN}/ReloadConfiguration",
    admin_pb2.ReloadConfigurationRequest,
    admin_pb2.ReloadConfigurationResponse,
)
GET_JOB = Method(f"{_JOB}/GetJob", job_pb2.GetJobRequest, job_pb2.Job)
LIST_JOBS = Method(f"{_JOB}/ListJobs", job_pb2.ListJobsRequest, job_pb2.ListJobsResponse)
START_JOB = Method(f"{_JOB}/StartJob", job_pb2.StartJobRequest, job_pb2.Job)
STOP_JOB = Method(f"{_JOB}/StopJob", job_pb2.StopJobRequest, job_pb2.Job)
SHUTDOWN_JOB = Method(f"{_JOB}/ShutdownJob", job_pb2.ShutdownJobRequest, job_pb2.Job)
UPDATE_JOB = Method(f"{_JOB}/UpdateJob", job_pb2.UpdateJobRequest, job_pb2.Job)
CREATE_JOB = Method(f"{_JOB}/CreateJob", job_pb2.CreateJobRequest, job_pb2.Job)
LIST_PARKED = Method(f"{_JOB}/ListParked", job_pb2.ListParkedRequest, job_pb2.ListParkedResponse)
RETRY_PARKED = Method(f"{_JOB}/RetryParked", job_pb2.RetryParkedRequest, job_pb2.RetryParkedResponse)
GET_MODULE = Method(f"{_MODULE}/GetModule", module_pb2.GetModuleRequest, module_pb2.Module)
LIST_MODULES = Method(f"{_MODULE}/ListModules", module_pb2.ListModulesRequest, module_pb2.ListModulesResponse)
LOAD_MODULE = Method(f"{_MODULE}/LoadModule", module_pb2.LoadModuleRequest, module_pb2.Module)
UNLOAD_MODULE = Method(
    f"{_MODULE}/UnloadModule", module_pb2.UnloadModuleRequest, module_pb2.UnloadModuleResponse
)


def explain_request(
    module: str,
    params: Mapping[str, Param],
    *,
    uid: int | None,
    gid: int | None,
    unit: str,
    cgroup: str,
) -> admin_pb2.ExplainPolicyRequest:
    """The ExplainPolicy for a module with these parameters, for oneself or for somebody."""
    request = admin_pb2.ExplainPolicyRequest(
        module=module, unit=unit, cgroup=cgroup, params=values_of(params)
    )
    if uid is not None:
        request.uid = uid
    if gid is not None:
        request.gid = gid
    return request


def job_name(job: int | str) -> str:
    """The resource name of a job by its id, of a durable one also by its name.

    >>> job_name(7), job_name("backup"), job_name("jobs/7")
    ('jobs/7', 'jobs/backup', 'jobs/7')
    """
    return job if isinstance(job, str) and job.startswith("jobs/") else f"jobs/{job}"


def create_request(
    name: str,
    module: str,
    params: Mapping[str, Param],
    *,
    options: Options | None,
    acknowledgement: int,
    keep: Keep | None,
    label: str,
    start: bool,
    execution: Exec | None = None,
) -> job_pb2.CreateJobRequest:
    """The CreateJob of a durable job; `acknowledgement` if the options do not say one."""
    asked = (options or Options()).message()
    asked.acknowledgement = asked.acknowledgement or acknowledgement  # type: ignore[assignment]
    return job_pb2.CreateJobRequest(
        name=name,
        module=module,
        params=values_of(params),
        options=asked,
        keep=None if keep is None else keep.message(),
        label=label,
        stopped=not start,
        exec=None if execution is None else execution.message(),
    )


def retry_request(job: int | str, cursors: Iterable[tuple[int, int]]) -> job_pb2.RetryParkedRequest:
    """The RetryParked for these cursors."""
    named = [job_pb2.Cursor(epoch=epoch, seq=seq) for epoch, seq in cursors]
    return job_pb2.RetryParkedRequest(name=job_name(job), cursors=named)


def priority_request(job_id: int | str, priority: int) -> job_pb2.UpdateJobRequest:
    """The UpdateJob that sets a priority."""
    request = job_pb2.UpdateJobRequest(
        job=job_pb2.Job(name=job_name(job_id), options=job_pb2.Options(priority=priority))
    )
    request.update_mask.paths.append("options.priority")
    return request


def shutdown_request(job_id: int | str, deadline: float | None) -> job_pb2.ShutdownJobRequest:
    """The ShutdownJob with a deadline in seconds."""
    deadline_ns = 0 if deadline is None else max(1, round(deadline * 1e9))
    return job_pb2.ShutdownJobRequest(name=job_name(job_id), deadline_ns=deadline_ns)


def list_jobs_request(module: str | None, state: str | int | None, token: str) -> job_pb2.ListJobsRequest:
    """One page of jobs; `state` is a job_pb2.State or its name, with or without STATE_ before it."""
    if isinstance(state, str):
        name = state.upper()
        state = job_pb2.State.Value(name if name.startswith("STATE_") else f"STATE_{name}")
    return job_pb2.ListJobsRequest(
        page_size=1_000,
        page_token=token,
        module=module or "",
        state=state or job_pb2.STATE_UNSPECIFIED,  # type: ignore[arg-type]
    )
