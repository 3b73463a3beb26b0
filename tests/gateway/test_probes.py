"""What watches the gateway."""

from grpc_health.v1 import health_pb2


async def test_ready_when_every_program_serves(gateway) -> None:
    answer = await gateway.http.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "programs": {"shop": "SERVING"}}


async def test_not_ready_while_a_program_is_not(gateway, shop) -> None:
    await shop.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    answer = await gateway.http.get("/healthz")
    assert (answer.status_code, answer.json()["programs"]) == (503, {"shop": "NOT_SERVING"})


async def test_not_ready_when_a_program_is_gone_and_ready_again_when_it_is_back(gateway, shop) -> None:
    await shop.stop()
    answer = await gateway.http.get("/healthz")
    assert (answer.status_code, answer.json()["programs"]) == (503, {"shop": "UNREACHABLE"})
    assert (await gateway.http.get("/livez")).json() == {"status": "alive"}


async def test_metrics_are_in_the_format_that_is_asked_for(gateway) -> None:
    plain = await gateway.http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    modern = await gateway.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")


async def test_a_probe_takes_no_other_method_and_says_so_in_the_common_shape(gateway) -> None:
    answer = await gateway.http.post("/livez")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"]["details"][0]["reason"] == "METHOD_NOT_ALLOWED"
