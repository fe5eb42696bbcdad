"""JobService: the jobs of the caller, one call at a time."""

from __future__ import annotations

from collections.abc import Mapping

from aemd.core.errors import invalid
from aemd.core.job import Job
from aemd.core.principal import Owner, Principal
from aemd.service.conductor import Conductor
from aemd.service.unary import Method, method, page_number, page_size, page_token, resource_number
from aemd.service.views import job_view
from aemd.v1 import job_pb2


class JobService:
    """The functions behind aem.v1.JobService."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._engine = conductor.engine

    def methods(self) -> Mapping[str, Method]:
        """Its methods by path."""
        service = "/aem.v1.JobService/"
        return {
            service + "GetJob": method(job_pb2.GetJobRequest, self._get),
            service + "ListJobs": method(job_pb2.ListJobsRequest, self._list),
            service + "StartJob": method(job_pb2.StartJobRequest, self._start),
            service + "StopJob": method(job_pb2.StopJobRequest, self._stop),
            service + "ShutdownJob": method(job_pb2.ShutdownJobRequest, self._shutdown),
            service + "UpdateJob": method(job_pb2.UpdateJobRequest, self._update),
        }

    def _get(self, principal: Principal, request: job_pb2.GetJobRequest) -> job_pb2.Job:
        return self._view(self._find(principal, request.name, "GetJob"), principal)

    def _list(self, principal: Principal, request: job_pb2.ListJobsRequest) -> job_pb2.ListJobsResponse:
        size = page_size(request.page_size)
        after = page_number(request.page_token)
        response = job_pb2.ListJobsResponse()
        owners: set[Owner] = set()
        for job in self._engine.jobs_of(principal, after=after):
            if request.module and job.traits.name != request.module:
                continue
            if request.state and job.state.wire != request.state:
                continue
            if len(response.jobs) == size:
                response.next_page_token = page_token(str(response.jobs[-1].id))
                break
            owners.add(job.owner.owner)
            response.jobs.append(self._view(job, principal))
        for owner in owners:
            self._conductor.authority.audit.looked(principal, "ListJobs", owner)
        return response

    def _start(self, principal: Principal, request: job_pb2.StartJobRequest) -> job_pb2.Job:
        job = self._find(principal, request.name, "StartJob")
        self._conductor.start(job)
        return self._view(job, principal)

    def _stop(self, principal: Principal, request: job_pb2.StopJobRequest) -> job_pb2.Job:
        job = self._find(principal, request.name, "StopJob")
        self._conductor.stop(job)
        return self._view(job, principal)

    def _shutdown(self, principal: Principal, request: job_pb2.ShutdownJobRequest) -> job_pb2.Job:
        job = self._find(principal, request.name, "ShutdownJob")
        self._conductor.shutdown(job, by=principal, deadline_ns=request.deadline_ns)
        return self._view(job, principal)

    def _update(self, principal: Principal, request: job_pb2.UpdateJobRequest) -> job_pb2.Job:
        job = self._find(principal, request.job.name, "UpdateJob")
        paths = list(request.update_mask.paths) or ["options.priority"]
        for path in paths:
            if path not in ("options.priority", "*"):
                raise invalid("update_mask", f"{path!r} cannot be changed; only options.priority can")
        if not request.job.options.HasField("priority"):
            raise invalid("job.options.priority", "is required: 0 to 7, 7 first")
        self._conductor.set_priority(job, request.job.options.priority)
        return self._view(job, principal)

    def _find(self, principal: Principal, name: str, doing: str) -> Job:
        return self._conductor.find_job(principal, resource_number("jobs", name), doing)

    def _view(self, job: Job, viewer: Principal) -> job_pb2.Job:
        return job_view(job, viewer, self._conductor.details(job))
