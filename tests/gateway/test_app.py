"""The gateway in front of the suite's own registry: the real contract, both real programs."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from gateway import app
from gateway.settings import GatewaySettings
from octavo import serving
from octavo.serving import ProcessMetrics, Telemetry
from services import registry
from tests.gateway import live

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def suite(tmp_path):
    """A client of a gateway in front of a registry; the other programs are not there."""
    process = ProcessMetrics()
    settings = registry.Settings(port=0, data_dir=tmp_path)
    service = registry.assemble(settings, Telemetry.create("registry", process))
    async with contextlib.AsyncExitStack() as stack:
        address = (await stack.enter_async_context(serving.running(service)))["registry"]
        gone = "127.0.0.1:1"
        settings = GatewaySettings(registry=address, trainer=gone, inference=gone, inspector=gone)
        application = app.create(settings, Telemetry.create("gateway", ProcessMetrics()))
        url = await stack.enter_async_context(live.serving(application))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10))


async def test_a_model_lives_its_life_over_http(suite) -> None:
    made = await suite.post("/api/v1/models?modelId=poet", json={"description": "Writes.", "labels": {"team": "a"}})
    assert (made.status_code, made.json()["name"]) == (200, "models/poet")
    changed = await suite.patch("/api/v1/models/poet", json={"description": "Writes better."})
    assert changed.json()["description"] == "Writes better."
    assert changed.json()["labels"] == {"team": "a"}
    listed = (await suite.get("/api/v1/models?pageSize=5")).json()
    assert [model["name"] for model in listed["models"]] == ["models/poet"]
    assert (await suite.delete("/api/v1/models/poet")).json() == {}
    assert (await suite.get("/api/v1/models/poet")).status_code == 404


async def test_a_services_refusal_arrives_with_its_reason_and_its_facts(suite) -> None:
    await suite.post("/api/v1/models?modelId=poet", json={})
    again = await suite.post("/api/v1/models?modelId=poet", json={})
    error = again.json()["error"]
    assert (again.status_code, error["status"]) == (409, "ALREADY_EXISTS")
    assert error["details"][0]["reason"] == "MODEL_EXISTS"
    wrong = await suite.post("/api/v1/models?modelId=Not%20An%20Id", json={})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"


async def test_changes_are_watched_as_events_and_a_watch_goes_on_where_it_stopped(suite) -> None:
    async def events(last: str, count: int) -> list[tuple[str, str]]:
        found, headers = [], {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        identity = ""
        async with suite.stream("GET", "/api/v1/events:watch", headers=headers) as answer:
            async for line in answer.aiter_lines():
                identity = line.removeprefix("id: ") if line.startswith("id: ") else identity
                if line.startswith("data: "):
                    found.append((identity, json.loads(line.removeprefix("data: "))["resource"]))
                if len(found) == count:
                    break
        return found

    for name in ("a", "b", "c"):
        await suite.post(f"/api/v1/models?modelId={name}", json={})
    first = await events("", 2)
    assert [resource for _, resource in first] == ["models/a", "models/b"]
    (rest,) = await events(first[-1][0], 1)
    assert rest[1] == "models/c"


async def test_the_registry_answers_by_its_grpc_names_too(suite) -> None:
    answer = await suite.post("/octavo.v1.Registry/ListModels", json={"pageSize": 3})
    assert answer.json() == {"models": [], "nextPageToken": "", "totalSize": 0}


async def test_health_says_which_programs_are_there(suite) -> None:
    answer = await suite.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["programs"] == {
        "registry": "SERVING",
        "trainer": "UNREACHABLE",
        "inference": "UNREACHABLE",
        "inspector": "UNREACHABLE",
    }
    refused = await suite.get("/api/v1/jobs")
    assert (refused.status_code, refused.json()["error"]["details"][0]["metadata"]) == (503, {"program": "trainer"})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def run(**environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), **environment},
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_program_serves_until_it_is_told_to_stop() -> None:
    port = free_port()
    process = await run(OCTAVO_GATEWAY_PORT=str(port))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http, asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get("/livez")).status_code == 200:
                    break
            await asyncio.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert b"Traceback" not in errors
    assert b"routes ready" in errors


async def test_a_port_that_is_taken_is_told_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await run(OCTAVO_GATEWAY_PORT=str(listener.getsockname()[1]))
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"OCTAVO_GATEWAY_PORT chooses another" in errors
    assert b"Traceback" not in errors


async def test_several_workers_share_the_port() -> None:
    port = free_port()
    process = await run(OCTAVO_GATEWAY_PORT=str(port), OCTAVO_GATEWAY_WORKERS="2")
    async with asyncio.timeout(30):
        seen = b""
        while seen.count(b"routes ready") < 2:
            line = await process.stderr.readline()
            assert line, seen
            seen += line
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.get("/livez")).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OCTAVO_GATEWAY_HOST": "0.0.0.0"}, b"OCTAVO_API_KEYS"),
        ({"OCTAVO_GATEWAY_PROT": "1"}, b"OCTAVO_GATEWAY_PORT"),
        ({"OCTAVO_GATEWAY_TIMEOUT_S": "soon"}, b"OCTAVO_GATEWAY_TIMEOUT_S='soon'"),
    ],
)
async def test_a_setting_that_cannot_be_is_told_in_one_sentence(environment, words) -> None:
    process = await run(**environment)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert words in errors
    assert b"Traceback" not in errors
