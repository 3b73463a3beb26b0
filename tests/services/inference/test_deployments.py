import asyncio
import json
import os
import shutil
from contextlib import AsyncExitStack

import pytest

from octavo import serving
from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.errors import FailedPrecondition, Internal, NotFound, Unavailable
from octavo.v1.deployments_pb2 import (
    DeleteDeploymentRequest,
    DeploymentState,
    DeploymentTarget,
    Precision,
    PromoteRequest,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    GenerateRequest,
    GenerationParameters,
    ListServedModelsRequest,
    ServedModelState,
    StreamGenerateRequest,
)
from octavo.v1.registry_pb2 import SetAliasRequest
from services import inference
from services.inference.bundle_cache import BundleCache
from services.inference.deployments import server_name
from services.inference.engine import Engine

READY, FAILED = DeploymentState.DEPLOYMENT_STATE_READY, DeploymentState.DEPLOYMENT_STATE_FAILED


def asked(model="deployments/poet", **parameters):
    return {"model": model, "prompt": "TO BE", "parameters": GenerationParameters(**{"max_tokens": 5, **parameters})}


async def answering_version(suite, model="deployments/poet"):
    return (await suite.inference.Generate(GenerateRequest(**asked(model)))).version


async def served(suite):
    listed = await suite.inference.ListServedModels(ListServedModelsRequest())
    return [model.version for model in listed.served_models]


async def until(condition):
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


def spoilt(bundle, directory):
    """The bundle with weights that do not give what its vectors say."""
    shutil.copytree(bundle, directory)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-400:] = content[-800:-400]
    weights.write_bytes(content)
    return directory


async def test_a_deployment_becomes_ready_and_says_what_it_serves(suite, bundles):
    version = await suite.publish(bundles())
    deployment = await suite.deploy(version)
    assert deployment.state == READY
    assert list(deployment.statuses[0].serving_versions) == [version]
    assert await answering_version(suite) == version


def test_a_server_that_starts_again_replaces_its_own_reports():
    assert server_name(50053) == server_name(50053)
    assert server_name(50053).endswith(":50053")
    assert server_name(50053) != server_name(50054)
    assert server_name(0).endswith(f"-{os.getpid()}")


async def test_every_family_is_served(suite, bundles):
    for family in ("gpt2", "llama", "qwen3"):
        version = await suite.publish(bundles(family), family)
        assert (await suite.deploy(version, deployment=family)).state == READY
        assert await answering_version(suite, f"deployments/{family}") == version


async def test_a_change_of_version_loses_no_request_and_unloads_the_old_one(suite, bundles):
    first, second = await suite.publish(bundles()), await suite.publish(bundles(seed=1))
    await suite.deploy(first)
    answers, is_over = [], False

    async def ask(seed):
        while not is_over:
            events = [
                event
                async for event in suite.inference.StreamGenerate(
                    StreamGenerateRequest(**asked(max_tokens=60, seed=seed, ignore_eos=True))
                )
            ]
            answers.append((events[-1].done.version, events[-1].done.usage.completion_tokens))

    callers = [asyncio.create_task(ask(seed)) for seed in range(8)]
    await asyncio.sleep(0.1)
    await suite.deploy(second)
    await asyncio.sleep(0.1)
    is_over = True
    await asyncio.gather(*callers)

    assert {version for version, _ in answers} == {first, second}
    assert {tokens for _, tokens in answers} == {60}

    async def old_is_gone():
        return await served(suite) == [second]

    await until(old_is_gone)


async def test_models_that_answer_at_the_same_time_never_mix_their_texts(suite, bundles):
    names = [await suite.publish(bundles(seed=seed)) for seed in range(3)]
    for number, name in enumerate(names):
        await suite.deploy(name, deployment=f"d{number}")

    async def text(name):
        request = StreamGenerateRequest(**asked(name, max_tokens=60, temperature=0, ignore_eos=True))
        return "".join([event.chunk.text async for event in suite.inference.StreamGenerate(request)])

    alone = {name: await text(name) for name in names}
    for _ in range(10):
        together = await asyncio.gather(*(text(name) for name in names * 4))
        assert dict(zip(names * 4, together, strict=True)) == alone
        assert set(together) == set(alone.values())


async def test_many_changes_of_version_lose_no_request_and_mix_no_answer(suite, bundles):
    versions = [await suite.publish(bundles()), await suite.publish(bundles(seed=1))]
    expected, answers, is_over = {}, [], False
    for version in reversed(versions):
        await suite.deploy(version)
        reply = await suite.inference.Generate(GenerateRequest(**asked(version, max_tokens=50, temperature=0)))
        expected[version] = reply.completions[0].text
    assert len(set(expected.values())) == 2

    async def ask_at_once():
        while not is_over:
            reply = await suite.inference.Generate(GenerateRequest(**asked(max_tokens=50, temperature=0)))
            answers.append((reply.version, reply.completions[0].text))

    async def ask_bit_by_bit():
        while not is_over:
            request = StreamGenerateRequest(**asked(max_tokens=50, temperature=0))
            events = [event async for event in suite.inference.StreamGenerate(request)]
            answers.append((events[-1].done.version, "".join(event.chunk.text for event in events)))

    callers = [asyncio.create_task(ask()) for _ in range(4) for ask in (ask_at_once, ask_bit_by_bit)]
    for change in range(1, 13):
        deployment = await suite.deploy(versions[change % 2])
        assert deployment.state == READY, deployment.statuses[0].message
        seen = len(answers)
        while len(answers) < seen + 4 and not any(caller.done() for caller in callers):
            await asyncio.sleep(0.005)
    is_over = True
    await asyncio.gather(*callers)
    assert {version for version, _ in answers} == set(versions)
    assert {version: {text for name, text in answers if name == version} for version in versions} == {
        version: {text} for version, text in expected.items()
    }


async def test_a_registry_that_goes_away_during_a_change_delays_it_and_costs_no_request(suite, bundles, monkeypatch):
    first, second = await suite.publish(bundles()), await suite.publish(bundles(seed=1))
    await suite.deploy(first)
    has_begun, may_go_on = asyncio.Event(), asyncio.Event()
    download = BundleCache._download

    async def slowly(self, manifest, target):
        has_begun.set()
        await may_go_on.wait()
        await download(self, manifest, target)

    monkeypatch.setattr(BundleCache, "_download", slowly)
    await suite.want([DeploymentTarget(version=second)])
    await has_begun.wait()
    await suite.stop_registry()
    may_go_on.set()
    for _ in range(10):
        assert await answering_version(suite) == first
    await suite.start_registry()

    async def has_changed():
        return await answering_version(suite) == second

    await until(has_changed)


async def test_two_servers_of_one_directory_neither_fetch_twice_nor_take_away_what_the_other_uses(suite, bundles):
    first, second = await suite.publish(bundles()), await suite.publish(bundles(seed=1))
    other = inference.assemble(suite.settings, serving.Telemetry.create("inference", serving.ProcessMetrics()))
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(serving.running(other))
        client = await stack.enter_async_context(AsyncClient(Addresses(inference=addresses["inference"])))

        async def answers(inference_client):
            try:
                return (await inference_client.Generate(GenerateRequest(**asked()))).version
            except (NotFound, Unavailable):  # what is READY on one server may be on its way on the other
                return ""

        for version in (first, second, first, second):
            await suite.deploy(version)
            async with asyncio.timeout(10):
                while {await answers(suite.inference), await answers(client.inference)} != {version}:
                    await asyncio.sleep(0.01)

        async def one_is_left():
            return len(list((suite.settings.data_dir / "inference" / "bundles").iterdir())) == 1

        await until(one_is_left)


async def test_a_version_whose_vectors_do_not_hold_is_refused_and_the_old_one_goes_on(suite, bundles, tmp_path):
    good = await suite.publish(bundles())
    await suite.deploy(good)
    bad = await suite.publish(spoilt(bundles(), tmp_path / "spoilt"))
    deployment = await suite.deploy(bad)
    assert deployment.state == FAILED
    assert "vector 0 of fp32 does not hold on this machine" in deployment.statuses[0].message
    assert list(deployment.statuses[0].serving_versions) == [good]
    assert await answering_version(suite) == good
    with pytest.raises(FailedPrecondition, match="does not hold") as caught:
        await answering_version(suite, bad)
    assert caught.value.reason == Reason.REASON_MODEL_REFUSED


async def test_a_bundle_without_a_graph_is_refused_with_what_it_lacks(suite, bundles, tmp_path):
    shutil.copytree(bundles(), tmp_path / "bare")
    (tmp_path / "bare" / "model.onnx").unlink()
    deployment = await suite.deploy(await suite.publish(tmp_path / "bare"))
    assert deployment.state == FAILED
    assert "no graph in fp32" in deployment.statuses[0].message


async def test_an_alias_is_followed_when_it_moves(suite, bundles):
    first, second = await suite.publish(bundles()), await suite.publish(bundles(seed=1))
    alias = "models/poet/aliases/champion"
    await suite.registry.SetAlias(SetAliasRequest(name=alias, version=first))
    await suite.deploy("models/poet@champion")
    assert await answering_version(suite) == first
    assert await answering_version(suite, "models/poet@champion") == first
    await suite.registry.SetAlias(SetAliasRequest(name=alias, version=second))

    async def has_moved():
        return await answering_version(suite) == second

    await until(has_moved)
    assert await answering_version(suite, "models/poet@champion") == second


async def test_an_alias_that_no_deployment_follows_is_asked_of_the_registry(suite, bundles):
    version = await suite.publish(bundles())
    await suite.deploy(version)
    await suite.registry.SetAlias(SetAliasRequest(name="models/poet/aliases/stable", version=version))
    assert await answering_version(suite, "models/poet@stable") == version


async def test_traffic_is_shared_by_weight(suite, bundles):
    versions = [await suite.publish(bundles()), await suite.publish(bundles(seed=1))]
    await suite.deploy(*versions, weights=(3, 1))
    seen = [await answering_version(suite) for _ in range(8)]
    assert seen == [versions[number] for number in (0, 0, 1, 0, 0, 0, 1, 0)]


def with_two_precisions(bundle, directory):
    """The bundle with a second graph, which stands for int8 and computes the same."""
    shutil.copytree(bundle, directory)
    shutil.copyfile(directory / "model.onnx", directory / "model.int8.onnx")
    conformance = json.loads((directory / "conformance.json").read_text())
    conformance["precisions"]["int8"] = conformance["precisions"]["fp32"] | {"graph": "model.int8.onnx"}
    (directory / "conformance.json").write_text(json.dumps(conformance))
    return directory


async def requests_by_name(suite):
    listed = (await suite.inference.ListServedModels(ListServedModelsRequest())).served_models
    return {model.name.removeprefix("servedModels/"): model.request_count for model in listed}


async def test_two_precisions_of_one_version_share_traffic_and_the_preferred_one_answers_for_its_name(
    suite, bundles, tmp_path
):
    version = await suite.publish(with_two_precisions(bundles(), tmp_path / "two"))
    targets = [
        DeploymentTarget(version=version, weight=weight, precision=precision)
        for weight, precision in ((1, Precision.PRECISION_FP32), (2, Precision.PRECISION_INT8))
    ]
    assert (await suite.settled(await suite.want(targets))).state == READY
    for _ in range(6):
        await answering_version(suite)
    assert await requests_by_name(suite) == {"poet.1.fp32": 2, "poet.1.int8": 4}
    for name in ("models/poet", version):
        await answering_version(suite, name)
    assert await requests_by_name(suite) == {"poet.1.fp32": 4, "poet.1.int8": 4}


@pytest.mark.parametrize(("preferred", "served_as"), [("fp32", "poet.1.fp32"), ("int4,int8", "poet.1.int8")])
async def test_a_deployment_that_names_no_precision_gets_the_first_that_the_server_prefers_and_the_version_has(
    bundles, open_suite, tmp_path, preferred, served_as
):
    async with open_suite(tmp_path, precisions=preferred) as suite:
        await suite.deploy(await suite.publish(with_two_precisions(bundles(), tmp_path / "two")))
        await answering_version(suite, "models/poet")
        assert await requests_by_name(suite) == {served_as: 1}


async def test_promoting_one_of_two_versions_gives_it_all_traffic(suite, bundles):
    versions = [await suite.publish(bundles()), await suite.publish(bundles(seed=1))]
    await suite.deploy(*versions)
    await suite.settled(await suite.deployments.Promote(PromoteRequest(name="deployments/poet", version=versions[1])))

    async def only_one_is_left():
        return await served(suite) == [versions[1]]

    await until(only_one_is_left)
    assert await answering_version(suite) == versions[1]


async def test_a_deleted_deployment_is_unloaded_and_its_files_are_removed(suite, bundles):
    await suite.deploy(await suite.publish(bundles()))
    await suite.deployments.DeleteDeployment(DeleteDeploymentRequest(name="deployments/poet"))

    async def all_is_gone():
        return not await served(suite)

    await until(all_is_gone)
    with pytest.raises(NotFound):
        await answering_version(suite)
    cache = suite.settings.data_dir / "inference" / "bundles"

    async def no_files_are_left():
        return not list(cache.iterdir())

    await until(no_files_are_left)


async def test_damaged_files_are_fetched_again(suite, bundles):
    await suite.deploy(await suite.publish(bundles()))
    (directory,) = (suite.settings.data_dir / "inference" / "bundles").iterdir()
    (directory / "config.json").write_text("{}")
    process = serving.ProcessMetrics()
    other = inference.assemble(suite.settings, serving.Telemetry.create("inference", process))
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(serving.running(other))
        client = await stack.enter_async_context(AsyncClient(Addresses(inference=addresses["inference"])))

        async def is_served():
            listed = await client.inference.ListServedModels(ListServedModelsRequest())
            return [model.state for model in listed.served_models] == [ServedModelState.SERVED_MODEL_STATE_READY]

        await until(is_served)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "gpt2"


async def test_an_engine_that_a_defect_has_ended_is_replaced(suite, bundles, monkeypatch):
    await suite.deploy(await suite.publish(bundles()))
    with monkeypatch.context() as broken:
        broken.setattr(Engine, "_decode", lambda self: 1 / 0)
        with pytest.raises(Internal, match="the engine has failed: ZeroDivisionError"):
            await answering_version(suite)

    async def answers_again():
        try:
            return await answering_version(suite)
        except Unavailable:
            return False

    await until(answers_again)


async def test_what_streams_when_the_server_stops_is_finished(bundles, open_suite, tmp_path):
    async with open_suite(tmp_path) as suite:
        await suite.deploy(await suite.publish(bundles()))
        begun = set()

        async def stream(number):
            fields = asked(max_tokens=80, ignore_eos=True, seed=1)
            tokens = 0
            async for event in suite.inference.StreamGenerate(StreamGenerateRequest(**fields)):
                begun.add(number)
                tokens += len(event.chunk.token_ids)
            return tokens

        callers = [asyncio.create_task(stream(number)) for number in range(6)]
        while len(begun) < 6:
            await asyncio.sleep(0.001)
        await suite.stop_inference()
        assert await asyncio.gather(*callers) == [80] * 6
