import logging

import grpc
import pytest
import pytest_asyncio

from octavo.errors import FailedPrecondition
from octavo.open_inference import open_inference_pb2 as oip
from octavo.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters
from services.inference.open_inference_servicer import OpenInferenceServicer
from services.inference.roster import Roster

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def poet(open_suite, bundles, tmp_path_factory):
    async with open_suite(tmp_path_factory.mktemp("suite")) as suite:
        await suite.deploy(await suite.publish(bundles()))
        yield suite


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stub(poet):
    async with grpc.aio.insecure_channel(poet.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def framed(text):
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def asked(text="TO BE", *, model="poet", typed=False, tag="", **parameters):
    tensor = oip.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
    request = oip.ModelInferRequest(model_name=model, id=tag, inputs=[tensor])
    if typed:
        request.inputs[0].contents.bytes_contents.append(text.encode())
    else:
        request.raw_input_contents.append(framed(text))
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


async def expected(suite, **parameters):
    request = GenerateRequest(model="deployments/poet", prompt="TO BE", parameters=GenerationParameters(**parameters))
    return (await suite.inference.Generate(request)).completions[0].text


async def test_the_server_tells_what_it_is(stub):
    assert (await stub.ServerLive(oip.ServerLiveRequest())).live
    assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
    metadata = await stub.ServerMetadata(oip.ServerMetadataRequest())
    assert metadata.name == "octavo"
    assert "statistics" in metadata.extensions


async def test_a_model_tells_what_it_takes_and_gives(stub):
    metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name="poet"))
    assert list(metadata.versions) == ["1"]
    assert [(tensor.name, tensor.datatype) for tensor in metadata.inputs] == [("text_input", "BYTES")]
    assert (await stub.ModelConfig(oip.ModelConfigRequest(name="poet"))).config.model_transaction_policy.decoupled


@pytest.mark.parametrize(
    ("name", "version", "ready"), [("poet", "", True), ("poet", "1", True), ("poet", "2", False), ("nobody", "", False)]
)
async def test_readiness_is_told_by_name_and_version(stub, name, version, ready):
    assert (await stub.ModelReady(oip.ModelReadyRequest(name=name, version=version))).ready == ready


@pytest.mark.parametrize("typed", [False, True])
async def test_text_comes_back_as_the_suite_itself_would_say_it(stub, poet, typed):
    reply = await stub.ModelInfer(asked(typed=typed, tag="7", max_tokens=12, seed=3, temperature=0.5))
    assert (reply.id, reply.model_version) == ("7", "1")
    assert reply.raw_output_contents[0] == framed(await expected(poet, max_tokens=12, seed=3, temperature=0.5))


async def test_parameters_of_older_clients_are_understood(stub, poet):
    reply = await stub.ModelInfer(asked(max_tokens="12", seed="3", temperature="0.5", ignore_eos="true", priority=1))
    text = await expected(poet, max_tokens=12, seed=3, temperature=0.5, ignore_eos=True)
    assert reply.raw_output_contents[0] == framed(text)


async def test_one_stream_carries_many_requests_and_a_failing_one_harms_no_other(stub, poet):
    requests = [
        asked(tag="good", max_tokens=40, seed=3, ignore_eos=True, triton_enable_empty_final_response=True),
        asked("ä", tag="bad"),
        asked(tag="other", max_tokens=40, seed=4, ignore_eos=True),
    ]

    async def sent():
        for request in requests:
            yield request

    texts, errors, finals = {"good": b"", "other": b""}, {}, []
    async for answer in stub.ModelStreamInfer(sent()):
        response = answer.infer_response
        if answer.error_message:
            errors[response.id] = answer.error_message
        elif response.parameters["triton_final_response"].bool_param:
            finals.append(response.id)
        else:
            texts[response.id] += response.raw_output_contents[0][4:]
    for name, seed in (("good", 3), ("other", 4)):
        assert texts[name].decode() == await expected(poet, max_tokens=40, seed=seed, ignore_eos=True)
    assert list(errors) == ["bad"]
    assert "not in the vocabulary" in errors["bad"]
    assert finals == ["good"]


async def test_statistics_count_what_succeeded_and_what_failed(stub):
    async def counted():
        (stats,) = (await stub.ModelStatistics(oip.ModelStatisticsRequest(name="poet"))).model_stats
        return stats

    before = await counted()
    await stub.ModelInfer(asked(max_tokens=5))
    after = await counted()
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.execution_count > before.execution_count


async def test_the_repository_is_listed(stub):
    listed = await stub.RepositoryIndex(oip.RepositoryIndexRequest())
    assert [(model.name, model.version, model.state) for model in listed.models] == [("poet", "1", "READY")]


async def test_a_client_of_kserve_loads_and_unloads_by_the_name_in_field_1(poet, stub):
    loaded = await stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(repository_name="poet"))
    assert (loaded.model_name, loaded.isLoaded) == ("poet", True)
    unloaded = await stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(repository_name="nobody"))
    assert (unloaded.model_name, unloaded.isUnloaded) == ("nobody", True)


async def test_a_version_to_load_is_chosen_by_its_number(stub):
    request = oip.RepositoryModelLoadRequest(model_name="poet", parameters={"version": {"int64_param": 1}})
    assert (await stub.RepositoryModelLoad(request)).isLoaded


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (oip.RepositoryModelLoadRequest(), "model_name: is empty"),
        (
            oip.RepositoryModelLoadRequest(model_name="poet", parameters={"version": {"int64_param": 9}}),
            r"versions/9; the newest is",
        ),
        (
            oip.RepositoryModelLoadRequest(model_name="poet", parameters={"version": {"string_param": "x"}}),
            "'x' is not a number",
        ),
        (
            oip.RepositoryModelLoadRequest(model_name="poet", parameters={"speed": {"int64_param": 9}}),
            "is not a parameter; there is version",
        ),
    ],
)
async def test_what_cannot_be_loaded_is_told(stub, request_, says):
    with pytest.raises(grpc.aio.AioRpcError, match=says):
        await stub.RepositoryModelLoad(request_)


async def test_a_server_whose_repository_is_fixed_says_so():
    servicer = OpenInferenceServicer(
        Roster(), None, None, repository=lambda: None, is_ready=lambda: True, logger=logging.getLogger("octavo.test")
    )
    with pytest.raises(FailedPrecondition, match="OCTAVO_INFERENCE_REPOSITORY_CONTROL"):
        await servicer.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="poet"), None)
    with pytest.raises(FailedPrecondition, match="delete a deployment"):
        await servicer.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="poet"), None)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (oip.ModelInferRequest(model_name="poet"), "send one input"),
        (asked(model="nobody"), "there is no"),
        (asked(warmth=3), "is not a parameter; there are"),
        (asked(temperature="hot"), "'hot' is not a value"),
        (asked(top_k=1.5), "is not a value"),
        (oip.ModelInferRequest(model_name="poet", model_version="x"), "'x' is not a number"),
    ],
)
async def test_bad_input_is_answered_with_what_would_be_right(stub, request_, says):
    with pytest.raises(grpc.aio.AioRpcError, match=says):
        await stub.ModelInfer(request_)


async def test_a_tensor_that_lies_about_its_length_is_refused(stub):
    request = asked()
    request.raw_input_contents[0] = (99).to_bytes(4, "little") + b"TO"
    with pytest.raises(grpc.aio.AioRpcError, match="goes beyond the end"):
        await stub.ModelInfer(request)
