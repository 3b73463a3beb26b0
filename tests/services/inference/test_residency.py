import asyncio
import gc
import shutil
import threading

import grpc
import numpy as np
import psutil
import pytest

from octavo.client import partial_file
from octavo.errors import InvalidArgument, Unavailable
from octavo.open_inference import open_inference_pb2 as oip
from octavo.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from octavo.v1.deployments_pb2 import (
    DeleteDeploymentRequest,
    DeploymentState,
    DeploymentTarget,
    GetDeploymentRequest,
    Precision,
    PromoteRequest,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    GenerateRequest,
    GenerationParameters,
    GetServedModelRequest,
    ListServedModelsRequest,
    ServedModelState,
)
from services.inference.engine import Engine
from services.inference.loader import Loader
from services.inference.memory import Heap
from services.inference.served_model import Key
from services.inference.settings import InferenceSettings
from tests.services.inference import tensor_graphs

VERIFYING = ServedModelState.SERVED_MODEL_STATE_VERIFYING
READY, FAILED = DeploymentState.DEPLOYMENT_STATE_READY, DeploymentState.DEPLOYMENT_STATE_FAILED


def footprint_bytes(bundle):
    """What a bundle takes of memory under the settings of a suite."""
    loader = Loader(InferenceSettings(port=0, slots=4, chunk_tokens=16, threads=1), None, None)
    return loader.footprint(bundle, Key("models/poet/versions/1", Precision.PRECISION_FP32)).total_bytes


@pytest.fixture
async def room_for(bundles, open_suite, tmp_path):
    """Opens a suite whose server has memory for so many of the small models."""
    contexts = []

    async def opening(count, **settings):
        limit_bytes = int(footprint_bytes(bundles()) * (count + 0.5))
        contexts.append(open_suite(tmp_path, memory_limit_bytes=limit_bytes, **settings))
        return await contexts[-1].__aenter__()

    yield opening
    for context in contexts:
        await context.__aexit__(None, None, None)


async def answer(suite, deployment="poet", **parameters):
    asked = GenerationParameters(**{"max_tokens": 5, **parameters})
    request = GenerateRequest(model=f"deployments/{deployment}", prompt="TO BE", parameters=asked)
    return await suite.inference.Generate(request)


async def states(suite):
    """The version's number of each served model, by state."""
    found = {}
    for model in (await suite.inference.ListServedModels(ListServedModelsRequest())).served_models:
        word = ServedModelState.Name(model.state).removeprefix("SERVED_MODEL_STATE_").lower()
        found.setdefault(word, []).append(int(model.version.rpartition("/")[2]))
    return found


async def until(condition):
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


async def is_running(suite):
    models = (await suite.inference.ListServedModels(ListServedModelsRequest())).served_models
    return any(model.running_count for model in models)


async def publish(suite, bundles, count):
    return [await suite.publish(bundles(seed=seed)) for seed in range(count)]


async def test_more_models_than_memory_are_served_when_they_come_on_demand(room_for, bundles):
    suite = await room_for(2)
    versions = await publish(suite, bundles, 3)
    names = ["a", "b", "c"]
    for name, version in zip(names, versions, strict=True):
        assert (await suite.deploy(version, deployment=name, on_demand=True)).state == READY
    assert await states(suite) == {"ready": [2, 3], "unloaded": [1]}
    before = {name: (await answer(suite, name, seed=1)).completions[0].text for name in names}
    for name in [*names, *reversed(names), *names]:
        reply = await answer(suite, name, seed=1)
        assert (reply.version, reply.completions[0].text) == (versions[names.index(name)], before[name])
        assert len((await states(suite))["ready"]) <= 2
    # The least recently used one has left.
    assert await states(suite) == {"ready": [2, 3], "unloaded": [1]}

    async def it_is_told():
        deployment = await suite.deployments.GetDeployment(GetDeploymentRequest(name="deployments/a"))
        return deployment.statuses[0].message == "out of memory until asked for: poet.1.fp32"

    await until(it_is_told)


async def test_the_memory_of_a_model_that_leaves_is_given_back_to_the_system(open_suite, bundles, tmp_path):
    large = bundles(width=512, layers=4, heads=8)
    weights_bytes = (large / "model.safetensors").stat().st_size
    assert weights_bytes > 50e6
    process = psutil.Process()
    async with open_suite(tmp_path, memory_limit_bytes=footprint_bytes(large) + 1, slots=4) as suite:
        await suite.deploy(await suite.publish(bundles()), deployment="small", on_demand=True)
        await answer(suite, "small")
        await suite.deploy(await suite.publish(large, "large"), deployment="large", on_demand=True)
        await answer(suite, "small")
        gc.collect()
        Heap().trim()
        start = process.memory_info().rss
        residues = []
        for _ in range(5):
            await answer(suite, "large")
            with pytest.raises(InvalidArgument):  # what fails holds the frames that it failed in
                await answer(suite, "large", stop_token_ids=[9999])
            assert process.memory_info().rss - start > weights_bytes * 0.8
            await answer(suite, "small")
            assert (await states(suite))["unloaded"] == [1]
            residues.append(process.memory_info().rss - start)
    assert max(residues) < weights_bytes / 5


async def test_any_company_of_requests_is_answered_within_the_budget(room_for, bundles):
    suite = await room_for(2)
    versions = await publish(suite, bundles, 5)
    for number, version in enumerate(versions):
        await suite.deploy(version, deployment=f"d{number}", on_demand=True)
    alone = {number: (await answer(suite, f"d{number}", seed=1)).completions[0].text for number in range(5)}
    random = np.random.default_rng(3)
    is_over = False

    async def call():
        for _ in range(12):
            number = int(random.choice(5, p=[0.5, 0.3, 0.1, 0.05, 0.05]))
            reply = await answer(suite, f"d{number}", seed=1)
            assert (reply.version, reply.completions[0].text) == (versions[number], alone[number])
            await asyncio.sleep(random.exponential(0.01))

    async def watch():
        while not is_over:
            models = (await suite.inference.ListServedModels(ListServedModelsRequest())).served_models
            held = [m for m in models if m.state in (VERIFYING, ServedModelState.SERVED_MODEL_STATE_READY)]
            assert sum(model.memory_size_bytes for model in held) <= suite.settings.memory_limit_bytes
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(call() for _ in range(8)))
    is_over = True
    await watching


async def test_many_requests_for_what_is_out_of_memory_load_it_once_and_all_wait(room_for, bundles, monkeypatch):
    suite = await room_for(1)
    for name, version in zip("ab", await publish(suite, bundles, 2), strict=True):
        await suite.deploy(version, deployment=name, on_demand=True)
    loaded = []
    load = Loader.load
    monkeypatch.setattr(Loader, "load", lambda self, directory, key: loaded.append(key) or load(self, directory, key))
    replies = await asyncio.gather(*(answer(suite, "a", seed=seed) for seed in range(12)))
    assert {reply.version for reply in replies} == {"models/poet/versions/1"}
    assert len(loaded) == 1


async def test_what_answers_never_leaves_and_who_waits_too_long_may_come_again(room_for, bundles, monkeypatch):
    suite = await room_for(1, load_patience_s=0.2)
    for name, version in zip("ab", await publish(suite, bundles, 2), strict=True):
        await suite.deploy(version, deployment=name, on_demand=True)
    await answer(suite, "a")
    may_step = threading.Event()
    step = Engine.step

    def slowly(self):
        if self.scheduler.running:
            may_step.wait(20)
        step(self)

    monkeypatch.setattr(Engine, "step", slowly)
    answering = asyncio.create_task(answer(suite, "a"))
    try:
        await until(lambda: is_running(suite))
        with pytest.raises(Unavailable, match=r"not loaded within 0.2 s; try again: .* only \d+ are free") as caught:
            await answer(suite, "b")
    finally:
        may_step.set()
    assert caught.value.reason == Reason.REASON_MODEL_LOADING
    assert caught.value.retry_after_s >= 1
    assert (await answering).version.endswith("/1")
    await until_answered(suite, "b")
    assert await states(suite) == {"ready": [2], "unloaded": [1]}


async def test_who_waits_for_memory_has_its_turn_though_others_never_pause(room_for, bundles, monkeypatch):
    suite = await room_for(1)
    for name, version in zip("ab", await publish(suite, bundles, 2), strict=True):
        await suite.deploy(version, deployment=name, on_demand=True)
    await answer(suite, "a")
    may_step = threading.Event()
    step = Engine.step

    def slowly(self):
        if self.scheduler.running:
            may_step.wait(20)
        step(self)

    monkeypatch.setattr(Engine, "step", slowly)
    first = asyncio.create_task(answer(suite, "a"))
    try:
        await until(lambda: is_running(suite))
        waiting = asyncio.create_task(answer(suite, "b"))

        async def makes_room():
            return await states(suite) == {"draining": [1], "waiting": [2]}

        await until(makes_room)
        second = asyncio.create_task(answer(suite, "a"))
    finally:
        may_step.set()
    assert [(await task).version[-1] for task in (first, waiting, second)] == ["1", "2", "1"]


async def test_a_version_larger_than_the_whole_budget_is_refused_with_the_numbers(room_for, bundles):
    suite = await room_for(0)
    deployment = await suite.deploy(await suite.publish(bundles()))
    assert deployment.state == FAILED
    needed = footprint_bytes(bundles())
    assert f"it takes {needed} bytes of memory (weights " in deployment.statuses[0].message
    assert f"may take {int(needed * 0.5)}; raise OCTAVO_INFERENCE_MEMORY_LIMIT_BYTES" in deployment.statuses[0].message


async def test_what_finds_no_room_says_who_has_it_and_is_loaded_once_there_is_some(room_for, bundles):
    suite = await room_for(1)
    first, second = await publish(suite, bundles, 2)
    await suite.deploy(first, deployment="a")
    deployment = await suite.deploy(second, deployment="b")
    assert deployment.state == FAILED
    assert "servedModels/poet.1.fp32" in deployment.statuses[0].message
    assert await states(suite) == {"ready": [1], "waiting": [2]}
    with pytest.raises(Unavailable, match="is being loaded"):
        await answer(suite, "b")
    await suite.deployments.DeleteDeployment(DeleteDeploymentRequest(name="deployments/a"))
    await until_answered(suite, "b")


async def test_loads_at_once_stay_within_the_budget_together(room_for, bundles):
    suite = await room_for(2)
    versions = await publish(suite, bundles, 4)
    made = [
        await suite.want([DeploymentTarget(version=version)], name)
        for name, version in zip("abcd", versions, strict=True)
    ]
    settled = [await suite.settled(deployment) for deployment in made]
    assert sorted(deployment.state for deployment in settled) == [READY, READY, FAILED, FAILED]
    assert {word: len(numbers) for word, numbers in (await states(suite)).items()} == {"ready": 2, "waiting": 2}


async def test_a_target_without_traffic_makes_room_and_comes_back_before_it_gets_any(room_for, bundles):
    suite = await room_for(2)
    versions = await publish(suite, bundles, 3)
    await suite.deploy(*versions[:2], weights=(1, 0))
    assert (await suite.deploy(versions[2], deployment="b", on_demand=True)).state == READY
    assert await states(suite) == {"ready": [1, 3], "unloaded": [2]}
    # It can be asked for by its name all the same.
    asked = GenerateRequest(model=versions[1], prompt="TO BE", parameters=GenerationParameters(max_tokens=3))
    assert (await suite.inference.Generate(asked)).version == versions[1]
    assert await states(suite) == {"ready": [1, 2], "unloaded": [3]}
    await answer(suite, "b")
    assert await states(suite) == {"ready": [1, 3], "unloaded": [2]}
    promoted = await suite.deployments.Promote(PromoteRequest(name="deployments/poet", version=versions[1]))
    assert (await suite.settled(promoted)).state == READY
    assert (await answer(suite)).version == versions[1]


async def test_a_model_of_tensors_leaves_and_comes_back_like_any_other(room_for, bundles, tmp_path):
    suite = await room_for(1)
    tensor_graphs.identity(tmp_path / "graph")
    await suite.deploy(await suite.publish(tmp_path / "graph", "mirror"), deployment="mirror", on_demand=True)
    await suite.deploy(await suite.publish(bundles()), deployment="poet", on_demand=True)
    request = oip.ModelInferRequest(model_name="mirror", raw_input_contents=[bytes(range(24))])
    request.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    name = GetServedModelRequest(name="servedModels/mirror.1.fp32")
    async with grpc.aio.insecure_channel(suite.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for ask in (
            lambda: stub.ModelInfer(request),
            lambda: stub.ModelMetadata(oip.ModelMetadataRequest(name="mirror")),
            lambda: stub.ModelConfig(oip.ModelConfigRequest(name="mirror")),
        ):
            await answer(suite)
            model = await suite.inference.GetServedModel(name)
            assert (model.state, model.memory_size_bytes) == (ServedModelState.SERVED_MODEL_STATE_UNLOADED, 0)
            assert (await stub.ModelReady(oip.ModelReadyRequest(name="mirror"))).ready
            reply = await ask()
            assert "mirror" in str(reply)
        assert (await stub.ModelInfer(request)).raw_output_contents[0] == bytes(range(24))
    model = await suite.inference.GetServedModel(name)
    assert (model.request_count, model.failed_request_count, model.on_demand) == (1, 0, True)


async def test_on_demand_models_leave_memory_when_nobody_asks_for_long(room_for, bundles):
    suite = await room_for(5, keep_alive_s=0.1)
    versions = await publish(suite, bundles, 2)
    await suite.deploy(versions[0], deployment="a", on_demand=True)
    await suite.deploy(versions[1], deployment="b")

    async def only_one_is_left():
        return await states(suite) == {"ready": [2], "unloaded": [1]}

    await until(only_one_is_left)
    assert (await answer(suite, "a")).version == versions[0]


async def test_a_large_model_on_its_way_does_not_hold_up_a_small_one(room_for, bundles, monkeypatch):
    suite = await room_for(5)
    large, small = await publish(suite, bundles, 2)
    may_load = threading.Event()
    load = Loader.load

    def slowly(self, directory, key):
        if key.version == large:
            may_load.wait(20)
        return load(self, directory, key)

    monkeypatch.setattr(Loader, "load", slowly)
    made = await suite.want([DeploymentTarget(version=large)], "large")
    try:
        assert (await suite.deploy(small, deployment="small")).state == READY
        assert await states(suite) == {"verifying": [1], "ready": [2]}
    finally:
        may_load.set()
    assert (await suite.settled(made)).state == READY


async def test_what_is_deleted_while_it_loads_leaves_nothing_behind(room_for, bundles, monkeypatch):
    suite = await room_for(1)
    first, second = await publish(suite, bundles, 2)
    may_load = threading.Event()
    load = Loader.load

    def slowly(self, directory, key):
        may_load.wait(20)
        return load(self, directory, key)

    monkeypatch.setattr(Loader, "load", slowly)
    await suite.want([DeploymentTarget(version=first)], "a")

    async def is_verifying():
        return await states(suite) == {"verifying": [1]}

    await until(is_verifying)
    await suite.deployments.DeleteDeployment(DeleteDeploymentRequest(name="deployments/a"))
    may_load.set()

    async def nothing_is_left():
        cache = suite.settings.data_dir / "inference" / "bundles"
        return not await states(suite) and not list(cache.iterdir())

    await until(nothing_is_left)
    # Its memory is there for another, which needs all of it.
    assert (await suite.deploy(second, deployment="b")).state == READY


async def test_a_full_disk_is_told_and_tried_again_until_there_is_room(suite, bundles, monkeypatch):
    version = await suite.publish(bundles())

    def full(self, chunk):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(partial_file.PartialFile, "write", full)
        deployment = await suite.deploy(version)
        assert deployment.state == FAILED
        assert "No space left on device; make room there" in deployment.statuses[0].message
        assert await states(suite) == {"waiting": [1]}
    await until_answered(suite, "poet")


async def test_a_model_that_comes_back_damaged_is_fetched_again_and_verified(room_for, bundles):
    suite = await room_for(1)
    for name, version in zip("ab", await publish(suite, bundles, 2), strict=True):
        await suite.deploy(version, deployment=name, on_demand=True)
    before = await answer(suite, "a", seed=3)
    await answer(suite, "b")
    for directory in (suite.settings.data_dir / "inference" / "bundles").iterdir():
        shutil.copyfile(bundles(seed=5) / "model.safetensors", directory / "model.safetensors")
    assert (await answer(suite, "a", seed=3)).completions == before.completions
    assert (await answer(suite, "b")).version.endswith("/2")


async def until_answered(suite, deployment):
    async def answers():
        try:
            return await answer(suite, deployment)
        except Unavailable:
            return False

    await until(answers)
