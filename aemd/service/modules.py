"""ModuleService: what there is to register for, and how the administrator changes that."""

from __future__ import annotations

from collections.abc import Mapping

from aemd.core.principal import Principal
from aemd.core.right import Act
from aemd.modules.contract import Module
from aemd.service.conductor import Conductor
from aemd.service.unary import Method, method, page_size, page_start, page_token, resource_id
from aemd.v1 import module_pb2


class ModuleService:
    """The functions behind aem.v1.ModuleService."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._engine = conductor.engine
        self._registry = conductor.registry

    def methods(self) -> Mapping[str, Method]:
        """Its methods by path."""
        service = "/aem.v1.ModuleService/"
        return {
            service + "GetModule": method(module_pb2.GetModuleRequest, self._get),
            service + "ListModules": method(module_pb2.ListModulesRequest, self._list),
            service + "LoadModule": method(module_pb2.LoadModuleRequest, self._load),
            service + "UnloadModule": method(module_pb2.UnloadModuleRequest, self._unload),
        }

    def _get(self, principal: Principal, request: module_pb2.GetModuleRequest) -> module_pb2.Module:
        module = self._registry.get(resource_id("modules", request.name))
        return self._view(principal, module)

    def _list(
        self, principal: Principal, request: module_pb2.ListModulesRequest
    ) -> module_pb2.ListModulesResponse:
        size = page_size(request.page_size)
        after = page_start(request.page_token)
        modules = [module for module in self._registry if module.description.name > after]
        response = module_pb2.ListModulesResponse(
            modules=[self._view(principal, module) for module in modules[:size]]
        )
        if len(modules) > size:
            response.next_page_token = page_token(modules[size - 1].description.name)
        return response

    def _load(self, principal: Principal, request: module_pb2.LoadModuleRequest) -> module_pb2.Module:
        name = resource_id("modules", request.name)
        self._conductor.authority.right(principal, Act(f"load module {name}", privileged=True))
        return self._view(principal, self._conductor.load_module(name))

    def _unload(
        self, principal: Principal, request: module_pb2.UnloadModuleRequest
    ) -> module_pb2.UnloadModuleResponse:
        name = resource_id("modules", request.name)
        self._conductor.authority.right(principal, Act(f"unload module {name}", privileged=True))
        return module_pb2.UnloadModuleResponse(jobs=self._conductor.unload_module(name))

    def _view(self, principal: Principal, module: Module) -> module_pb2.Module:
        name = module.description.name
        jobs = self._engine.job_count(principal, name)
        return self._registry.describe(module, jobs=jobs)
