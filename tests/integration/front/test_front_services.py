"""What a front answers by itself: health and reflection."""

import signal

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def reflect(channel, **request):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**request)
    return next(stub.ServerReflectionInfo(iter([request]), timeout=20))


def test_health_serves_until_the_drain(start):
    echo = start()
    with echo.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "aem.v1.EventService", "aem.v1.JobService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request, timeout=20).status == SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        talk = echo.session(channel)
        talk.who()
        echo.process.send_signal(signal.SIGUSR1)
        assert next(watch).status == NOT_SERVING
        assert talk.ask("echo", text="still here") == b"still here"
        with echo.channel() as late, pytest.raises(grpc.RpcError) as refused:
            echo.echo(late, b"x")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_reflection_lists_the_services(echo):
    with echo.channel() as channel:
        listed = reflect(channel, list_services="")
        names = {service.name for service in listed.list_services_response.service}
    assert {
        "aem.v1.EventService",
        "aem.v1.JobService",
        "aem.v1.ModuleService",
        "aem.v1.AdminService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } == names


@pytest.mark.parametrize("symbol", ["aem.v1.ClientFrame", "aem.v1.JobService", "google.rpc.QuotaFailure"])
def test_reflection_describes(echo, symbol):
    with echo.channel() as channel:
        found = reflect(channel, file_containing_symbol=symbol).file_descriptor_response
    files = [descriptor_pb2.FileDescriptorProto.FromString(each) for each in found.file_descriptor_proto]
    package, _, name = symbol.rpartition(".")
    assert any(
        file.package == package and name in [each.name for each in (*file.message_type, *file.service)]
        for file in files
    )


def test_reflection_of_what_is_not_there_is_an_error(echo):
    with echo.channel() as channel:
        found = reflect(channel, file_containing_symbol="aem.v1.Nonsense")
        assert found.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        found = reflect(channel, file_by_filename="/etc/passwd")
        assert found.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
