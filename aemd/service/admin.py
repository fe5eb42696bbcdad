"""AdminService: how the daemon does, and who is connected."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aemd import __version__
from aemd.core.principal import Principal
from aemd.core.right import Act
from aemd.service.explain import Explainer
from aemd.service.facts import descriptors_open, resident_bytes
from aemd.service.measurements import Measurements
from aemd.service.unary import Method, method, page_number, page_size, page_token, resource_number
from aemd.service.views import principal_view, session_view
from aemd.v1 import admin_pb2

if TYPE_CHECKING:
    from aemd.service.daemon import Daemon


class AdminService:
    """The functions behind aem.v1.AdminService."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._engine = daemon.engine
        self._measurements = Measurements(daemon)
        self._explainer = Explainer(daemon.conductor, daemon.deputy, administrator=daemon.config.uid)

    def methods(self) -> Mapping[str, Method]:
        """Its methods by path."""
        service = "/aem.v1.AdminService/"
        return {
            service + "GetStatus": method(admin_pb2.GetStatusRequest, self._status),
            service + "ListSessions": method(admin_pb2.ListSessionsRequest, self._list),
            service + "EndSession": method(admin_pb2.EndSessionRequest, self._end),
            service + "ListQuotas": method(admin_pb2.ListQuotasRequest, self._quotas),
            service + "GetMetrics": method(admin_pb2.GetMetricsRequest, self._metrics),
            service + "ExplainPolicy": method(admin_pb2.ExplainPolicyRequest, self._explainer.explain),
            service + "ReloadConfiguration": method(admin_pb2.ReloadConfigurationRequest, self._reload),
        }

    def _status(self, principal: Principal, _request: admin_pb2.GetStatusRequest) -> admin_pb2.DaemonStatus:
        daemon = self._daemon
        totals = self._engine.totals(principal)
        status = admin_pb2.DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            uid=os.geteuid(),
            start_time_ns=daemon.start_time_ns,
            socket=daemon.config.socket,
            user_instance=daemon.config.user,
            draining=daemon.draining,
            caller=principal_view(principal, principal),
            jobs=totals.jobs,
            sessions=totals.sessions,
            fires=totals.fires,
            lost=totals.lost,
            connections=daemon.peers.connections_of(principal),
            modules=[module.description.name for module in daemon.registry],
            kernel=os.uname().release,
        )
        if principal.administrator:
            status.descriptors_open = descriptors_open()
            status.descriptors_max = daemon.descriptors.limit
            status.fronts = daemon.peers.fronts
            status.fronts_replaced = daemon.peers.fronts_replaced
            status.resident_bytes = resident_bytes()
            status.wakeups = daemon.loop.wakeups
            status.configuration.CopyFrom(daemon.reload.view())
        return status

    def _list(
        self, principal: Principal, request: admin_pb2.ListSessionsRequest
    ) -> admin_pb2.ListSessionsResponse:
        size = page_size(request.page_size)
        after = page_number(request.page_token)
        sessions = sorted(
            (session for session in self._engine.sessions_of(principal) if session.id > after),
            key=lambda session: session.id,
        )
        for owner in {session.principal.owner for session in sessions[:size]}:
            self._daemon.authority.audit.looked(principal, "ListSessions", owner)
        response = admin_pb2.ListSessionsResponse(
            sessions=[session_view(session, principal) for session in sessions[:size]]
        )
        if len(sessions) > size:
            response.next_page_token = page_token(str(sessions[size - 1].id))
        return response

    def _quotas(
        self, principal: Principal, request: admin_pb2.ListQuotasRequest
    ) -> admin_pb2.ListQuotasResponse:
        size = page_size(request.page_size)
        first = page_number(request.page_token)
        accounts, now_ns = self._engine.accounts, self._engine.now.mono_ns
        seen = [account for account in accounts.seen_by(principal) if account.uid >= first]
        response = admin_pb2.ListQuotasResponse()
        for account in seen[:size]:
            user = response.users.add(name=f"users/{account.uid}", uid=account.uid)
            for use in accounts.uses(account, now_ns, principal):
                user.uses.add(**dataclasses.asdict(use))
        if len(seen) > size:
            response.next_page_token = page_token(str(seen[size].uid))
        return response

    def _end(
        self, principal: Principal, request: admin_pb2.EndSessionRequest
    ) -> admin_pb2.EndSessionResponse:
        session = self._engine.find_session(principal, resource_number("sessions", request.name))
        jobs = session.stats.jobs
        self._daemon.authority.audit.looked(principal, "EndSession", session.principal.owner)
        self._daemon.conductor.end_session(session, f"ended by uid {principal.uid}")
        return admin_pb2.EndSessionResponse(jobs=jobs)

    def _metrics(
        self, principal: Principal, request: admin_pb2.GetMetricsRequest
    ) -> admin_pb2.GetMetricsResponse:
        return self._measurements.collect(principal, request.jobs)

    def _reload(
        self, principal: Principal, _request: admin_pb2.ReloadConfigurationRequest
    ) -> admin_pb2.ReloadConfigurationResponse:
        daemon = self._daemon
        daemon.authority.right(principal, Act("reload the configuration", privileged=True))
        ended = daemon.reload.reload()
        return admin_pb2.ReloadConfigurationResponse(configuration=daemon.reload.view(), jobs_ended=ended)
