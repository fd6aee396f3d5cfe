"""One server with a fake engine for each test file; what a test disturbs is put right before the next one."""

from collections.abc import Iterator

import grpc
import httpx
import openai
import pytest

from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, live_server


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture
def llm(server: LiveServer) -> FakeLLM:
    server.llm.reset()
    return server.llm


@pytest.fixture(scope="module")
def channel(server: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel, llm: FakeLLM) -> PolyServeStub:
    return PolyServeStub(channel)


@pytest.fixture(scope="module")
def openai_client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def connection(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, verify=False) as opened:  # certificates take long to load
        yield opened


@pytest.fixture
def client(connection: httpx.Client, llm: FakeLLM) -> httpx.Client:
    """Of a server whose engine does what it should."""
    return connection
