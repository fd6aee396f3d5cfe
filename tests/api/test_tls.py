"""Both protocols over TLS, and web pages of other origins."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from polyserve.api.protection import Certificate, Protection
from polyserve.cli.main import main
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.live_server import LiveServer, live_server

ORIGIN = "https://example.org"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    return Certificate(folder / "cert.pem", folder / "key.pem")


@pytest.fixture(scope="module")
def secure(certificate: Certificate) -> Iterator[LiveServer]:
    with live_server(protection=Protection(certificate=certificate, cors_origins=(ORIGIN,))) as server:
        yield server


def test_http_and_grpc_answer_over_tls(secure: LiveServer, authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    url = secure.url.replace("http:", "https:")
    with httpx.Client(verify=trusting) as client:
        assert client.get(f"{url}/v1/models").status_code == 200
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with grpc.secure_channel(secure.grpc_address, credentials) as channel:
        assert PolyServeStub(channel).GetModel(pb.GetModelRequest()).model == "fake"
    assert f"at {url} (HTTP)" in secure.announced


def test_plain_text_is_not_answered_where_there_is_tls(secure: LiveServer) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{secure.url}/health")
    with grpc.insecure_channel(secure.grpc_address) as channel, pytest.raises(grpc.RpcError):
        PolyServeStub(channel).GetModel(pb.GetModelRequest(), timeout=2)


def test_a_listed_origin_may_call_and_another_not(secure: LiveServer) -> None:
    url = secure.url.replace("http:", "https:") + "/v1/chat/completions"
    with httpx.Client(verify=False) as client:
        allowed = client.options(url, headers=PREFLIGHT)
        refused = client.options(url, headers={**PREFLIGHT, "Origin": "https://example.com"})
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in refused.headers


def test_no_other_origin_may_call_by_default(server: LiveServer) -> None:
    response = httpx.options(f"{server.url}/v1/chat/completions", headers=PREFLIGHT)
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_answers_say_that_their_type_is_not_to_be_guessed(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/health").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("flags", [["--tls-cert", "/no/such"], ["--tls-cert", "/no/such", "--tls-key", "/no/such"]])
def test_a_certificate_that_cannot_be_used_ends_the_server_with_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nothing", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_key_of_another_certificate_is_refused(
    certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "key.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    assert main(["serve", "nothing", "--tls-cert", str(certificate.chain), "--tls-key", str(other)]) == 2
    assert "no certificate and its key" in capsys.readouterr().err
