"""The client of Triton servers, unmodified, against ours."""

import asyncio
import queue
import sys
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio

from octavo.errors import FailedPrecondition
from octavo.v1.deployments_pb2 import GetDeploymentRequest
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters, ListServedModelsRequest
from tests.services.inference import tensor_graphs, triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

DTYPES = {name: np.dtype(name.lower()) for name in ("UINT8", "UINT16", "UINT32", "UINT64")}
DTYPES |= {name: np.dtype(name.lower()) for name in ("INT8", "INT16", "INT32", "INT64")}
DTYPES |= {"BOOL": np.dtype(bool), "FP16": np.dtype(np.float16), "FP32": np.dtype(np.float32)}
DTYPES |= {"FP64": np.dtype(np.float64), "BF16": np.dtype(ml_dtypes.bfloat16)}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(open_suite, bundles, tmp_path_factory):
    root = tmp_path_factory.mktemp("graphs")
    tensor_graphs.every_type(root / "types")
    tensor_graphs.identity(root / "words", "BYTES")
    tensor_graphs.affine(root / "doubler")
    tensor_graphs.lookup(root / "lookup")
    async with open_suite(tmp_path_factory.mktemp("suite")) as suite:
        await suite.deploy(await suite.publish(bundles()))
        for name in ("types", "words", "doubler", "lookup"):
            await suite.deploy(await suite.publish(root / name, name), deployment=name)
        yield suite


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(server):
    async with triton.aio.InferenceServerClient(server.address) as made:
        yield made


def tensor(name, array, datatype):
    made = triton.client.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def prompt(text="TO BE"):
    return [tensor("text_input", np.array([text.encode()], np.object_), "BYTES")]


def pair(a, b):
    return [tensor("a", np.array(a, np.float32), "FP32"), tensor("b", np.array(b, np.float32), "FP32")]


async def expected(server, **parameters):
    request = GenerateRequest(model="deployments/poet", prompt="TO BE", parameters=GenerationParameters(**parameters))
    return (await server.inference.Generate(request)).completions[0].text


async def failure(call):
    with pytest.raises(triton.client.InferenceServerException) as caught:
        await call
    return caught.value


async def test_the_server_says_what_it_is_and_claims_no_more_than_it_has(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    metadata = await client.get_server_metadata(as_json=True)
    assert metadata["name"] == "octavo"
    assert {"model_repository", "statistics", "model_configuration", "binary_tensor_data"} <= set(
        metadata["extensions"]
    )
    unclaimed = {"classification", "sequence", "system_shared_memory", "cuda_shared_memory", "trace", "logging"}
    assert not unclaimed & set(metadata["extensions"])


async def test_metadata_and_configuration_of_a_model_of_tensors_agree(client):
    metadata = await client.get_model_metadata("doubler", as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": name, "datatype": "FP32", "shape": ["-1", "-1"]} for name in "ab"]
    assert [entry["name"] for entry in metadata["outputs"]] == ["y", "twice"]
    config = (await client.get_model_config("doubler", as_json=True))["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("doubler", "octavo", 32)
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_FP32", "dims": ["-1"]}
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 64
    assert config["dynamic_batching"]["priority_levels"] == "201"
    assert not config["model_transaction_policy"].get("decoupled")
    assert config["version_policy"] == {"specific": {"versions": ["1"]}}


async def test_a_model_of_text_is_decoupled(client):
    config = (await client.get_model_config("poet", as_json=True))["config"]
    assert config["model_transaction_policy"]["decoupled"]
    assert "max_batch_size" not in config
    metadata = await client.get_model_metadata("poet")
    assert [(entry.name, entry.datatype, list(entry.shape)) for entry in metadata.inputs] == [
        ("text_input", "BYTES", [1])
    ]


async def test_every_numeric_type_comes_back_as_it_went(client):
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 2, (3, 2)).astype(dtype) for name, dtype in DTYPES.items()}
    for name in ("FP16", "BF16", "FP32", "FP64"):
        arrays[name] = (arrays[name].astype(np.float64) + 1 / 3).astype(DTYPES[name])
    arrays["INT8"] -= 5
    arrays["UINT64"] += np.uint64(2**63)
    result = await client.infer("types", [tensor(f"i_{name}", array, name) for name, array in arrays.items()])
    for name, array in arrays.items():
        found = result.as_numpy(f"o_{name}")
        assert found.dtype == array.dtype, name
        assert (found == array).all(), name
        assert result.get_output(f"o_{name}").datatype == name


async def test_words_come_back_as_bytes(client):
    words = np.array([["ä".encode(), b"", b"x\x00y"], [b"a" * 1000, b"1", b" "]], np.object_)
    result = await client.infer("words", [tensor("x", words, "BYTES")])
    assert (result.as_numpy("y") == words).all()


async def test_outputs_can_be_chosen(client):
    outputs = [triton.client.InferRequestedOutput("twice")]
    result = await client.infer("doubler", pair([[1]], [[2]]), outputs=outputs, request_id="7", model_version="1")
    assert result.as_numpy("twice").tolist() == [[2]]
    packed = await client.infer("doubler", pair([[1]], [[2]]), compression_algorithm="gzip")
    assert packed.as_numpy("twice").tolist() == [[2]]
    assert result.as_numpy("y") is None
    assert (result.get_response().id, result.get_response().model_version) == ("7", "1")


async def test_many_requests_at_once_get_each_its_own(client, server):
    before = (await client.get_inference_statistics("doubler")).model_stats[0]
    results = await asyncio.gather(*(client.infer("doubler", pair([[i, 0]], [[0, i]])) for i in range(60)))
    for i, result in enumerate(results):
        assert result.as_numpy("y").tolist() == [[2 * i, i]]
    after = (await client.get_inference_statistics("doubler")).model_stats[0]
    assert after.inference_count - before.inference_count == 60
    assert after.inference_stats.success.count - before.inference_stats.success.count == 60
    assert sum(batch.batch_size * batch.compute_infer.count for batch in after.batch_stats) == after.inference_count
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, part).ns <= after.inference_stats.success.ns
    assert after.last_inference > 1_600_000_000_000


@pytest.mark.parametrize(
    ("model", "inputs", "more", "code", "says"),
    [
        ("doubler", pair([[1]], [[1, 2]]), {}, "INVALID_ARGUMENT", "has 2 where another size 'width' is 1"),
        ("doubler", pair([[1]], [[1]])[:1], {}, "INVALID_ARGUMENT", "inputs['b']: is missing"),
        ("doubler", pair([[1]] * 33, [[1]] * 33), {}, "INVALID_ARGUMENT", "has 33 rows; send 1 to 32"),
        ("doubler", prompt(), {}, "INVALID_ARGUMENT", "inputs['text_input']: is not an input; there are a, b"),
        (
            "doubler",
            pair([[1]], [[1]]),
            {"parameters": {"warmth": 1}},
            "INVALID_ARGUMENT",
            "no parameters but priority",
        ),
        ("doubler", pair([[1]], [[1]]), {"sequence_id": 3}, "UNIMPLEMENTED", "no sequences"),
        ("doubler", pair([[1]], [[1]]), {"priority": 202}, "INVALID_ARGUMENT", "202 is not between 0"),
        ("lookup", [tensor("index", np.array([[5]]), "INT64")], {}, "INVALID_ARGUMENT", "cannot take these values"),
        ("nobody", prompt(), {}, "NOT_FOUND", "nobody"),
        ("poet", prompt("ä"), {}, "INVALID_ARGUMENT", "not in the vocabulary"),
        ("poet", prompt(), {"model_version": "9"}, "NOT_FOUND", "poet"),
        ("poet", prompt(), {"parameters": {"top_k": -1}}, "INVALID_ARGUMENT", "parameters.top_k"),
    ],
)
async def test_bad_input_is_answered_with_what_would_be_right(client, model, inputs, more, code, says):
    error = await failure(client.infer(model, inputs, **more))
    assert error.status() == f"StatusCode.{code}"
    assert says in error.message()


async def test_classification_and_shared_memory_are_refused_and_said_so(client):
    outputs = [triton.client.InferRequestedOutput("y", class_count=3)]
    error = await failure(client.infer("doubler", pair([[1]], [[1]]), outputs=outputs))
    assert (error.status(), "classification is not served" in error.message()) == ("StatusCode.UNIMPLEMENTED", True)
    inputs = pair([[1]], [[1]])
    inputs[0].set_shared_memory("region", 4)
    error = await failure(client.infer("doubler", inputs))
    assert (error.status(), "shared memory is not served" in error.message()) == ("StatusCode.UNIMPLEMENTED", True)
    error = await failure(client.register_system_shared_memory("region", "/region", 64))
    assert error.status() == "StatusCode.UNIMPLEMENTED"
    assert not (await client.get_system_shared_memory_status()).regions
    assert not (await client.get_cuda_shared_memory_status()).regions
    await client.unregister_system_shared_memory()
    await client.unregister_cuda_shared_memory()


async def test_settings_that_only_the_start_takes_are_refused_and_said_so(client):
    error = await failure(client.get_trace_settings())
    assert (error.status(), "OCTAVO_OTLP_ENDPOINT" in error.message()) == ("StatusCode.UNIMPLEMENTED", True)
    error = await failure(client.get_log_settings())
    assert (error.status(), "OCTAVO_LOG_FORMAT" in error.message()) == ("StatusCode.UNIMPLEMENTED", True)


async def test_text_in_text_out_with_the_ending_beside_it(client, server):
    result = await client.infer("poet", prompt(), parameters={"max_tokens": 6, "seed": 3, "ignore_eos": True})
    text = result.as_numpy("text_output")
    assert text.tolist() == [(await expected(server, max_tokens=6, seed=3, ignore_eos=True)).encode()]
    parameters = result.get_response().parameters
    assert parameters["finish_reason"].string_param == "max_tokens"
    assert (parameters["prompt_tokens"].int64_param, parameters["completion_tokens"].int64_param) == (5, 6)


async def test_text_can_be_held_to_a_form(client):
    result = await client.infer("poet", prompt(), parameters={"regex": "[A-C]{3}", "seed": 1})
    assert set(result.as_numpy("text_output")[0].decode()) <= set("ABC")
    error = await failure(client.infer("poet", prompt(), parameters={"regex": "A", "json_schema": "{}"}))
    assert "one form too many" in error.message()


class Stream:
    """The synchronous client's stream, as its users have it: answers come to a callback in another thread."""

    def __init__(self, address):
        self.client = triton.client.InferenceServerClient(address)
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    async def next(self):
        return await asyncio.to_thread(self.answers.get, timeout=20)

    async def close(self, cancel=False):
        await asyncio.to_thread(partial(self.client.stop_stream, cancel_requests=cancel))
        self.client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stream(server):
    made = Stream(server.address)
    yield made
    await made.close()


async def test_many_texts_and_tensors_share_one_stream(stream, server):
    seeds = range(20)
    for seed in seeds:
        parameters = {"max_tokens": 10, "seed": seed, "ignore_eos": True}
        stream.client.async_stream_infer(
            "poet", prompt(), request_id=f"text-{seed}", parameters=parameters, enable_empty_final_response=True
        )
        stream.client.async_stream_infer("doubler", pair([[seed]], [[1]]), request_id=f"tensor-{seed}")
    texts, numbers = {}, {}
    under_way = 2 * len(seeds)
    while under_way:
        result, error = await stream.next()
        assert error is None
        response = result.get_response()
        kind, _, seed = response.id.partition("-")
        is_final = response.parameters["triton_final_response"].bool_param
        under_way -= is_final
        if kind == "tensor":
            numbers[int(seed)] = result.as_numpy("y").item()
        elif not is_final:
            texts[int(seed)] = texts.get(int(seed), "") + result.as_numpy("text_output")[0].decode()
        else:
            assert response.parameters["finish_reason"].string_param == "max_tokens"
    assert numbers == {seed: 2 * seed + 1 for seed in seeds}
    for seed in (0, 7, 19):
        assert texts[seed] == await expected(server, max_tokens=10, seed=seed, ignore_eos=True)


async def test_an_error_on_a_stream_belongs_to_its_request(stream):
    stream.client.async_stream_infer("doubler", pair([[1]], [[1]])[:1], request_id="bad")
    _, error = await stream.next()
    assert "inputs['b']: is missing" in error.message()
    stream.client.async_stream_infer("doubler", pair([[1]], [[1]]), request_id="good")
    result, error = await stream.next()
    assert (error, result.as_numpy("y").item()) == (None, 3)


async def idle(server):
    """Waits until no sequence runs or waits."""
    async with asyncio.timeout(20):
        while True:
            models = (await server.inference.ListServedModels(ListServedModelsRequest())).served_models
            if not sum(model.running_count + model.waiting_count for model in models):
                return
            await asyncio.sleep(0.02)


async def test_leaving_a_stream_frees_its_slots(server):
    stream = Stream(server.address)
    for _ in range(30):
        stream.client.async_stream_infer("poet", prompt(), parameters={"ignore_eos": True})
    await stream.next()
    await stream.close(cancel=True)
    await idle(server)


async def test_leaving_a_stream_ends_its_requests_and_unloading_ends_what_would_never_end(open_suite, tmp_path):
    tensor_graphs.endless(tmp_path / "graph")
    async with open_suite(tmp_path / "suite") as suite, triton.aio.InferenceServerClient(suite.address) as client:
        await suite.deploy(await suite.publish(tmp_path / "graph", "endless"), deployment="endless")
        stream = Stream(suite.address)
        while not await waiting(suite):  # one runs, and another waits behind it
            stream.client.async_stream_infer("endless", [tensor("x", np.array([[2]], np.float32), "FP32")])
            await asyncio.sleep(0.05)
        await stream.close(cancel=True)
        async with asyncio.timeout(20):
            while await waiting(suite):
                await asyncio.sleep(0.02)
            stats = (await client.get_inference_statistics("endless")).model_stats[0].inference_stats
            assert stats.success.count == 0
            assert stats.fail.count >= 2
            await client.unload_model("endless")


async def waiting(server):
    models = (await server.inference.ListServedModels(ListServedModelsRequest())).served_models
    return sum(model.waiting_count for model in models)


async def test_a_message_beyond_the_limit_is_refused_and_the_connection_goes_on(client):
    large = np.zeros((1, (8 << 20) + 1), np.float32)
    error = await failure(client.infer("doubler", [tensor(name, large, "FP32") for name in "ab"]))
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert str(64 << 20) in error.message()
    assert await client.is_server_live()


async def test_a_timeout_in_microseconds_is_honoured_and_frees_the_slot(client, server, stream):
    endless = {"ignore_eos": True}
    error = await failure(client.infer("poet", prompt(), timeout=1, parameters=endless))
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    stream.client.async_stream_infer("poet", prompt(), timeout=1, parameters=endless)
    while (answer := await stream.next())[1] is None:
        pass
    assert "deadline" in answer[1].message()
    error = await failure(client.infer("doubler", pair([[1]], [[1]]), timeout=-5))
    assert "-5 is not between 0 (none)" in error.message()
    await idle(server)


async def test_the_repository_lists_every_model(client):
    index = await client.get_model_repository_index(as_json=True)
    assert {(model["name"], model["state"]) for model in index["models"]} == {
        (name, "READY") for name in ("poet", "types", "words", "doubler", "lookup")
    }


async def test_tensors_are_not_asked_for_text_and_show_no_family(server):
    with pytest.raises(FailedPrecondition, match="call ModelInfer"):
        await server.inference.Generate(GenerateRequest(model="deployments/doubler", prompt="x"))
    models = (await server.inference.ListServedModels(ListServedModelsRequest())).served_models
    (doubler,) = [model for model in models if model.deployments == ["deployments/doubler"]]
    assert (doubler.family, doubler.conformance_count, doubler.waiting_limit) == ("", 0, 64)


async def test_models_are_loaded_and_unloaded_and_both_can_be_said_twice(open_suite, tmp_path):
    tensor_graphs.identity(tmp_path / "first")
    tensor_graphs.identity(tmp_path / "second", shape=("batch", 2))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no graph")
    async with open_suite(tmp_path / "suite") as suite, triton.aio.InferenceServerClient(suite.address) as client:
        assert (await failure(client.load_model("mirror"))).status() == "StatusCode.NOT_FOUND"
        for name in ("first", "second"):
            await suite.publish(tmp_path / name, "mirror")
        await client.load_model("mirror")
        await client.load_model("mirror")
        assert (await client.get_model_metadata("mirror")).versions == ["2"]
        (await client.infer("mirror", [tensor("x", np.ones((1, 2), np.float32), "FP32")])).as_numpy("y")
        await suite.publish(tmp_path / "broken", "mirror")
        error = await failure(client.load_model("mirror"))
        assert error.status() == "StatusCode.FAILED_PRECONDITION"
        assert "cannot load model.onnx" in error.message()
        assert (await client.get_model_metadata("mirror")).versions == ["2"]
        for wish in ({"config": '{"name": "mirror"}'}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
            assert "a version's own" in (await failure(client.load_model("mirror", **wish))).message()
        await client.unload_model("mirror")
        assert not await client.is_model_ready("mirror")
        assert not (await client.get_model_repository_index()).models
        await client.unload_model("mirror", unload_dependents=True)


async def test_loading_leaves_a_split_of_traffic_as_it_is(open_suite, tmp_path):
    tensor_graphs.identity(tmp_path / "graph")
    async with open_suite(tmp_path / "suite") as suite, triton.aio.InferenceServerClient(suite.address) as client:
        versions = [await suite.publish(tmp_path / "graph", "mirror") for _ in range(2)]
        made = await suite.deploy(*versions, deployment="mirror")
        await client.load_model("mirror")
        now = await suite.deployments.GetDeployment(GetDeploymentRequest(name=made.name))
        assert (now.revision, len(now.targets)) == (made.revision, 2)


async def test_a_deployment_of_another_name_is_asked_by_its_own(open_suite, tmp_path):
    tensor_graphs.identity(tmp_path / "graph")
    async with open_suite(tmp_path / "suite") as suite, triton.aio.InferenceServerClient(suite.address) as client:
        await suite.deploy(await suite.publish(tmp_path / "graph", "mirror"), deployment="front")
        for name, version in (("front", ""), ("front", "1"), ("mirror", ""), ("mirror", "1")):
            assert await client.is_model_ready(name, version)
            assert (await client.get_model_metadata(name, version)).name == name
        index = (await client.get_model_repository_index()).models
        assert [(model.name, model.version) for model in index] == [("front", "1"), ("mirror", "1")]
        await client.load_model("front")
        await client.unload_model("front")
        assert not await client.is_model_ready("mirror")


async def test_a_split_is_exact_for_text_and_tensors_whoever_only_asks_about_the_model(open_suite, bundles, tmp_path):
    tensor_graphs.identity(tmp_path / "graph")
    async with open_suite(tmp_path / "suite") as suite, triton.aio.InferenceServerClient(suite.address) as client:
        for name, directory in (("poet", bundles()), ("mirror", tmp_path / "graph")):
            versions = [await suite.publish(directory, name) for _ in range(2)]
            await suite.deploy(*versions, deployment=name)
        inputs = {"poet": prompt(), "mirror": [tensor("x", np.ones((1, 3), np.float32), "FP32")]}
        for name, own in inputs.items():
            answered = []
            for _ in range(6):
                assert await client.is_model_ready(name)
                await client.get_model_config(name)
                parameters = {"max_tokens": 2} if name == "poet" else None
                answered.append((await client.infer(name, own, parameters=parameters)).get_response().model_version)
            assert sorted(answered) == ["1"] * 3 + ["2"] * 3
            stats = (await client.get_inference_statistics(name)).model_stats
            assert [entry.inference_stats.success.count for entry in stats] == [3, 3]


async def test_the_client_works_as_its_users_run_it(open_suite, bundles, tmp_path):
    tensor_graphs.affine(tmp_path / "doubler")
    async with open_suite(tmp_path / "suite") as suite:
        await suite.publish(bundles())
        await suite.publish(tmp_path / "doubler", "doubler")
        script = Path(__file__).with_name("triton_script.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, suite.address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        names, rows, text, streamed, ready = output.decode().splitlines()
        assert names == "doubler poet"
        assert rows == "[[0.0, 3.0, 6.0], [9.0, 12.0, 15.0]]"
        assert text == streamed
        assert ready == "False True"
