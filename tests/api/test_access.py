"""API keys: without one nothing answers but what is listed as public, whatever routes and methods there are."""

import contextlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from fastapi.routing import iter_route_contexts
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from polyserve.api import keys as keys_module
from polyserve.api.access import HTTP_ACCESS, RPC_ACCESS, Access
from polyserve.api.http.app import create_app
from polyserve.api.keys import VARIABLE, KeyRing, new_key
from polyserve.api.protection import Protection
from polyserve.cli.main import main
from polyserve.errors import PermissionDenied, SettingsError, Unauthenticated
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import fake_frontend
from support.live_server import LiveServer, live_server

SECRET, ENTRY = new_key("alice")
ADMIN_SECRET, ADMIN_ENTRY = new_key("ops", admin=True)


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with live_server(protection=Protection(KeyRing([ENTRY, ADMIN_ENTRY]))) as server:
        yield server


@pytest.fixture(scope="module")
def channel(guarded: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(guarded.grpc_address) as opened:
        yield opened


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(server: LiveServer, path: str, method: str = "GET", key: str | None = None) -> httpx.Response:
    return httpx.request(method, server.url + path, headers={} if key is None else bearer(key))


def routes() -> list[tuple[str, str]]:
    """Every method and path that the application knows."""
    contexts = iter_route_contexts(create_app(fake_frontend(), Protection()).routes)
    return [
        (method, re.sub(r"{[\w:]+}", "x", route.path))
        for route in contexts
        for method in sorted(route.methods or ["GET"])
    ]


def rpcs(channel: grpc.Channel) -> list[str]:
    """Every method of every service, as reflection tells one who has a key."""
    with_key = grpc.intercept_channel(channel, _AddKey())
    database = ProtoReflectionDescriptorDatabase(with_key)
    pool = DescriptorPool(database)
    services = [pool.FindServiceByName(name) for name in database.get_services()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


class _AddKey(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=[("authorization", f"Bearer {SECRET}")]), requests)


def code_of(channel: grpc.Channel, rpc: str, key: str | None = None) -> grpc.StatusCode:
    call = channel.unary_stream(rpc)
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    try:
        for _ in call(b"", metadata=metadata, timeout=5):
            return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_route_without_a_key_is_refused_unless_it_is_listed(guarded: LiveServer) -> None:
    assert len(routes()) > 8
    for method, path in [*routes(), ("GET", "/nothing"), ("POST", "/health/"), ("GET", "//health")]:
        response = ask(guarded, path, method)
        if HTTP_ACCESS.get(path) == Access.PUBLIC:
            assert response.status_code != 401, path
        else:
            assert response.status_code == 401, path


def test_every_rpc_without_a_key_is_refused_unless_it_is_listed(channel: grpc.Channel) -> None:
    assert len(rpcs(channel)) > 7
    for rpc in [*rpcs(channel), "/polyserve.v1.PolyServe/Nothing", "/nothing.Nothing/Nothing"]:
        refused = code_of(channel, rpc) == grpc.StatusCode.UNAUTHENTICATED
        assert refused == (RPC_ACCESS.get(rpc) != Access.PUBLIC), rpc


def test_a_missing_and_a_wrong_key_are_401_as_with_openai(guarded: LiveServer) -> None:
    missing, wrong = ask(guarded, "/v1/models"), ask(guarded, "/v1/models", key="ps-wrong")
    for response, code in ((missing, None), (wrong, "invalid_api_key")):
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (401, "invalid_request_error", code)
        assert response.headers["www-authenticate"] == "Bearer"
    assert "ps-wrong" not in wrong.text


def test_a_key_opens_http_and_grpc(guarded: LiveServer, channel: grpc.Channel) -> None:
    assert ask(guarded, "/v1/models", key=SECRET).status_code == 200
    metadata = [("authorization", f"bearer {SECRET}")]
    assert PolyServeStub(channel).GetModel(pb.GetModelRequest(), metadata=metadata).model == "fake"


def test_metrics_need_an_admins_key(guarded: LiveServer) -> None:
    response = ask(guarded, "/metrics", key=SECRET)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "admin_key_required")
    assert ask(guarded, "/metrics", key=ADMIN_SECRET).status_code == 200


@pytest.mark.parametrize(
    "header",
    [SECRET, f"Basic {SECRET}", f"Bearer  {SECRET}", "Bearer", "Bearer \xff", ""],
    ids=["no scheme", "another scheme", "two spaces", "no key", "not ASCII", "empty"],  # the secret is never the same
)
def test_a_header_of_another_form_is_no_key(header: str) -> None:
    with pytest.raises(Unauthenticated):
        KeyRing([ENTRY]).authenticate(header)


def test_a_key_is_compared_with_all_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    really = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return really(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    ring = KeyRing([ENTRY, ADMIN_ENTRY])
    for key in (SECRET, ADMIN_SECRET, "wrong", ""):
        compared.clear()
        with contextlib.suppress(Unauthenticated):
            ring.authenticate(f"Bearer {key}")
        assert compared == [ENTRY.digest, ADMIN_ENTRY.digest]


def test_two_keys_can_have_one_name() -> None:
    second, entry = new_key("alice")
    ring = KeyRing([ENTRY, entry])
    assert ring.authenticate(f"Bearer {SECRET}") == ring.authenticate(f"Bearer {second}") == "alice"


def test_without_keys_everybody_may_call() -> None:
    assert KeyRing().authenticate(None, admin=True) is None


def test_a_ring_knows_who_is_no_admin() -> None:
    with pytest.raises(PermissionDenied):
        KeyRing([ENTRY]).authenticate(f"Bearer {SECRET}", admin=True)


def test_the_command_makes_a_key_that_the_file_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["keys", "bob", "--admin", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert KeyRing(file=file).authenticate(f"Bearer {key}", admin=True) == "bob"


def test_a_file_is_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n\n{ENTRY.line()}  # hers\n")
    ring = KeyRing(file=file)
    file.write_text(ADMIN_ENTRY.line())
    ring.reload()
    assert ring.authenticate(f"Bearer {ADMIN_SECRET}") == "ops"
    for wrong in ("", "ops sha256:12", f"ops {ADMIN_SECRET}", "a b c d", f"{ADMIN_ENTRY.line()} root"):
        file.write_text(wrong)
        with pytest.raises(SettingsError) as error:
            ring.reload()
        assert ADMIN_SECRET not in error.value.message
        assert ring.authenticate(f"Bearer {ADMIN_SECRET}") == "ops"


def test_keys_come_from_the_environment_and_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{ENTRY.line()},{ADMIN_ENTRY.line()}")
    ring = KeyRing.from_environment(None)
    assert ring.authenticate(f"Bearer {ADMIN_SECRET}", admin=True) == "ops"
    assert not KeyRing.from_environment(None).required


def test_a_key_file_that_is_missing_ends_the_server_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nothing", "--api-keys-file", "/no/such/file"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("polyserve: /no/such/file: cannot be read")
    assert error.count("\n") == 1


def test_a_name_with_spaces_is_refused() -> None:
    with pytest.raises(SettingsError, match="letters, digits"):
        new_key("a b")


def test_cached_prompts_are_shared_by_the_keys_of_one_name_only(guarded: LiveServer) -> None:
    guarded.llm.reset()
    for key, salt in ((SECRET, None), (SECRET, None), (SECRET, "x"), (ADMIN_SECRET, None), (ADMIN_SECRET, "x")):
        body = {"prompt": "hi", "max_tokens": 1, "cache_salt": salt}
        httpx.post(f"{guarded.url}/v1/completions", json=body, headers=bearer(key)).raise_for_status()
    salts = [params.cache_salt for params in guarded.llm.seen]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4
    assert None not in salts
