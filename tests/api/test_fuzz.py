"""schemathesis, from our own OpenAPI document: no 5xx, and nothing that the document does not say.

Also what it makes wrong on purpose has to be refused, and what it makes has every character, `\\x00` included. The
short run is against a fake engine; `make fuzz-api` asks a real server 100 times for each operation.
"""

from collections.abc import Iterator
from typing import cast

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from polyserve.api.frontend import Frontend
from polyserve.api.http.app import create_app
from polyserve.api.protection import Protection
from support.checkpoints import make_checkpoint
from support.live_server import LiveServer, live_server
from support.served_model import Served, served

API = schemathesis.openapi.from_dict(create_app(cast(Frontend, None), Protection()).openapi())
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
# A schema cannot say all that a model demands, such as ids below its vocabulary's size.
UNSAID = ("positive_data_acceptance",)


@pytest.fixture(scope="module")
def storing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(store_path=tmp_path_factory.mktemp("store") / "completions") as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    model = make_checkpoint(folder / "tiny", "llama")
    with served(model, "--threads", "1", "--store", str(folder / "completions")) as server:
        yield server


def check(case: schemathesis.Case, url: str) -> None:
    excluded = [check for check in CHECKS.get_all() if check.__name__ in UNSAID]
    case.call_and_validate(base_url=url, excluded_checks=excluded, timeout=60)


@API.parametrize()
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=SLOW, database=None)
def test_a_few_requests_of_every_kind(case: schemathesis.Case, storing: LiveServer) -> None:
    check(case, storing.url)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@API.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW, database=None)
def test_a_hundred_requests_of_every_kind(case: schemathesis.Case, running: Served) -> None:
    check(case, running.url)
