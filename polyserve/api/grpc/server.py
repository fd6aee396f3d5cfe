"""The gRPC server: PolyServe's own service, the standard health service and reflection on one port."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.authentication import Authentication
from polyserve.api.grpc.service import PolyServeService
from polyserve.api.keys import KeyRing
from polyserve.api.ports import PortUnavailable, authority
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1 import polyserve_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 8 * 2**20
SERVICE = pb.DESCRIPTOR.services_by_name["PolyServe"].full_name
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else a second server could take a part of the first one's calls
)


class GrpcServer:
    """Holds its port from the beginning, and answers from `start` on. Raises PortUnavailable."""

    def __init__(self, host: str, port: int, keys: KeyRing) -> None:
        self._keys = keys
        self._server = grpc.aio.server(options=OPTIONS, interceptors=(Authentication(keys),))
        self._health = health.aio.HealthServicer()
        try:
            self._server.add_insecure_port(authority(host, port))
        except RuntimeError as error:
            raise PortUnavailable(f"cannot listen at {authority(host, port)}") from error

    async def start(self, frontend: Frontend) -> None:
        """Answer calls."""
        add_service = pb_grpc.add_PolyServeServicer_to_server
        add_service(PolyServeService(frontend, self._keys), self._server)  # type: ignore[no-untyped-call]  # generated code
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Say so, take no more calls, and give those that run some time."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
