"""JobService: the jobs of the caller, one call at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from aemd.core.errors import AemError, invalid
from aemd.core.history import Cursor
from aemd.core.job import Job
from aemd.core.principal import Owner, Principal
from aemd.service.conductor import Conductor
from aemd.service.durables import Durables
from aemd.service.unary import (
    Later,
    Method,
    method,
    page_number,
    page_size,
    page_start,
    page_token,
    resource_id,
    resource_number,
)
from aemd.service.views import job_view, parked_view
from aemd.v1 import job_pb2


class JobService:
    """The functions behind aem.v1.JobService."""

    def __init__(self, conductor: Conductor, durables: Durables) -> None:
        self._conductor = conductor
        self._durables = durables
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
            service + "CreateJob": method(job_pb2.CreateJobRequest, self._create),
            service + "ListParked": method(job_pb2.ListParkedRequest, self._list_parked),
            service + "RetryParked": method(job_pb2.RetryParkedRequest, self._retry_parked),
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

    def _start(self, principal: Principal, request: job_pb2.StartJobRequest) -> Later:
        later = Later()
        answer = partial(self._answer, later, principal)
        job = self._find(principal, request.name, "StartJob")
        if self._conductor.start(job, answer):
            answer(job)
        return later

    def _stop(self, principal: Principal, request: job_pb2.StopJobRequest) -> Later:
        later = Later()
        job = self._find(principal, request.name, "StopJob")
        self._conductor.stop(job)
        self._answer(later, principal, job)
        return later

    def _shutdown(self, principal: Principal, request: job_pb2.ShutdownJobRequest) -> Later:
        later = Later()
        job = self._find(principal, request.name, "ShutdownJob")
        self._conductor.shutdown(job, by=principal, deadline_ns=request.deadline_ns)
        self._answer(later, principal, job)
        return later

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

    def _create(self, principal: Principal, request: job_pb2.CreateJobRequest) -> Later:
        later = Later()

        def made(job: Job | AemError) -> None:
            if isinstance(job, AemError):
                later.give(job)
            else:
                self._durables.when_made(job, lambda error: later.give(error or self._view(job, principal)))

        found = self._durables.create(principal, request, made)
        if found is not None:
            made(found)
        return later

    def _list_parked(
        self, principal: Principal, request: job_pb2.ListParkedRequest
    ) -> job_pb2.ListParkedResponse:
        size = page_size(request.page_size)
        after = _cursor_of(page_start(request.page_token))
        job = self._find(principal, request.name, "ListParked")
        found = sorted(
            (one for one in self._engine.parked_of(job) if one.cursor > after), key=lambda one: one.cursor
        )
        response = job_pb2.ListParkedResponse(entries=map(parked_view, found[:size]))
        if len(found) > size:
            last = found[size - 1].cursor
            response.next_page_token = page_token(f"{last.epoch}:{last.seq}")
        return response

    def _retry_parked(
        self, principal: Principal, request: job_pb2.RetryParkedRequest
    ) -> job_pb2.RetryParkedResponse:
        job = self._find(principal, request.name, "RetryParked")
        cursors = [Cursor(cursor.epoch, cursor.seq) for cursor in request.cursors]
        retried = self._engine.retry(job, cursors, self._conductor.now())
        self._durables.commands.hurry(job)
        return job_pb2.RetryParkedResponse(retried=retried)

    def _answer(self, later: Later, principal: Principal, result: Job | AemError) -> None:
        """What was done with a job; with a durable one, once it is on disk."""
        if isinstance(result, AemError):
            later.give(result)
        elif result.durable is None:
            later.give(self._view(result, principal))
        else:
            self._durables.when_kept(lambda error: later.give(error or self._view(result, principal)))

    def _find(self, principal: Principal, name: str, doing: str) -> Job:
        text = resource_id("jobs", name)
        if text.isdigit():
            return self._conductor.find_job(principal, resource_number("jobs", name), doing)
        job = self._durables.find(principal, text)
        self._conductor.authority.audit.looked(principal, doing, job.owner.owner)
        return job

    def _view(self, job: Job, viewer: Principal) -> job_pb2.Job:
        view = job_view(job, viewer, self._conductor.details(job))
        commands = self._durables.commands
        execution, state = commands.execution_of(job), commands.state_of(job, viewer)
        if execution is not None and state is not None:
            view.exec.CopyFrom(execution.to_pb())
            view.exec_state.CopyFrom(state)
        return view


def _cursor_of(text: str) -> Cursor:
    """The position that a page token of ours names."""
    epoch, _, seq = text.partition(":")
    if not text:
        return Cursor(0, 0)
    if not (epoch.isascii() and epoch.isdigit() and seq.isascii() and seq.isdigit() and len(text) < 42):
        raise invalid("page_token", "is not from a response of this method")
    return Cursor(int(epoch), int(seq))
