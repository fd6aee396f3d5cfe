"""Log lines: one a record whatever is in it, as text or as JSON, with the request they belong to."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from polyserve.log import escaped, get_logger, name_request, set_up_logging

log = get_logger("polyserve.test")
FORGED = "/x\n2026-01-01 00:00:00 ERROR polyserve: all is lost\x1b[2J\u202e\x00"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("polyserve")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_a_client_cannot_write_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    log.warning("no route %s", FORGED)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        r"polyserve.test: no route /x\n2026-01-01 00:00:00 ERROR polyserve: all is lost\x1b[2J\u202e\x00"
    )


def test_an_error_cannot_either(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("it failed")
    first, *others = capsys.readouterr().err.splitlines()
    assert "it failed" in first
    assert others
    assert all(line.startswith("    ") for line in others)


def test_text_in_any_language_stays_as_it_is() -> None:
    assert escaped("Grüße aus 東京 👍 ไทย") == "Grüße aus 東京 👍 ไทย"


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    log.info("no route %s", FORGED)
    (line,) = capsys.readouterr().err.splitlines()
    value = json.loads(line)
    assert (value["level"], value["logger"], value["message"]) == ("info", "polyserve.test", f"no route {FORGED}")
    assert "request_id" not in value
    assert line.isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_a_request_and_of_its_tasks_carry_its_id(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", form)

    async def work() -> None:
        log.info("inside")

    async def serve(request_id: str) -> None:
        name_request(request_id)
        await asyncio.create_task(work())

    async def both() -> None:
        await asyncio.gather(serve("r-1"), serve("r-2"))
        log.info("outside")

    asyncio.run(both())
    lines = capsys.readouterr().err.splitlines()
    assert sorted("r-1" in line for line in lines) == sorted("r-2" in line for line in lines) == [False, False, True]
    assert all(("r-" in line) == ("inside" in line) for line in lines)
