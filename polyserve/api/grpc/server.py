"""The gRPC server: PolyServe's own service, the standard health service and reflection on one port."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.authentication import Authentication
from polyserve.api.grpc.service import PolyServeService
from polyserve.api.limits import Limits
from polyserve.api.ports import PortUnavailable, authority
from polyserve.api.protection import Certificate, Protection
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1 import polyserve_pb2_grpc as pb_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["PolyServe"].full_name


class GrpcServer:
    """Holds its port from the beginning, and answers from `start` on. Raises PortUnavailable."""

    def __init__(self, host: str, port: int, protection: Protection) -> None:
        self._keys = protection.keys
        options = _options(protection.limits)
        self._server = grpc.aio.server(options=options, interceptors=(Authentication(self._keys),))
        self._health = health.aio.HealthServicer()
        try:
            if protection.certificate is None:
                self._server.add_insecure_port(authority(host, port))
            else:
                self._server.add_secure_port(authority(host, port), _credentials(protection.certificate))
        except RuntimeError as error:
            raise PortUnavailable(f"cannot listen at {authority(host, port)}") from error

    async def start(self, frontend: Frontend) -> None:
        """Answer calls."""
        add_service = pb_grpc.add_PolyServeServicer_to_server
        add_service(PolyServeService(frontend, self._keys), self._server)  # type: ignore[no-untyped-call]  # generated code
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()
        await self.set_ready(True)

    async def set_ready(self, ready: bool) -> None:
        """What the health service says from now on, of the server and of its service."""
        answer = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, answer.SERVING if ready else answer.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and give those that run some time."""
        await self._server.stop(grace_s)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server could take a part of the first one's calls
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),  # between the two, calls are refused by chance
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.server_handshake_timeout_ms", round(limits.header_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", round(limits.write_timeout_s * 1000)),  # clients that are gone without a word
    ]


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(certificate.key.read_bytes(), certificate.chain.read_bytes())])
