"""What may be called without a key, and what needs an admin's: two lists. All else needs a key, whoever adds it.

Public are the questions of whoever runs the server's machines, which say nothing about requests, models or clients.
"""

from enum import Enum


class Access(Enum):
    PUBLIC = "public"
    KEY = "key"
    ADMIN = "admin"


HTTP_ACCESS = {
    "/health": Access.PUBLIC,
    "/livez": Access.PUBLIC,
    "/readyz": Access.PUBLIC,
    "/metrics": Access.ADMIN,  # it tells about everybody's requests
}
RPC_ACCESS = {f"/grpc.health.v1.Health/{method}": Access.PUBLIC for method in ("Check", "List", "Watch")}


def http_access(path: str) -> Access:
    """What a request of this path needs; exact paths only, as routes match them."""
    return HTTP_ACCESS.get(path, Access.KEY)


def rpc_access(method: str) -> Access:
    """What a call of `/package.Service/Method` needs."""
    return RPC_ACCESS.get(method, Access.KEY)
