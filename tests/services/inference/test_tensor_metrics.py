import asyncio

import grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from octavo.open_inference import open_inference_pb2 as oip
from octavo.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.services.inference import tensor_graphs

LABELS = (("precision", "fp32"), ("version", "models/mirror/versions/1"))


def samples(process):
    text = generate_latest(process.collector).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_runs_rows_and_outcomes_are_counted(suite, tmp_path):
    tensor_graphs.identity(tmp_path / "graph")
    await suite.deploy(await suite.publish(tmp_path / "graph", "mirror"), deployment="mirror")
    async with grpc.aio.insecure_channel(suite.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        request = oip.ModelInferRequest(model_name="mirror", raw_input_contents=[bytes(24)])
        request.inputs.add(name="x", datatype="FP32", shape=[2, 3])
        await asyncio.gather(*(stub.ModelInfer(request) for _ in range(3)))
        request.parameters["timeout"].int64_param = 1
        call = stub.ModelInfer(request)
        assert (await call.code()).name == "DEADLINE_EXCEEDED"
    seen = samples(suite.metrics)
    assert seen["octavo_inference_tensor_requests_total", ("outcome", "ok"), *LABELS] == 3
    assert seen["octavo_inference_tensor_requests_total", ("outcome", "deadline_exceeded"), *LABELS] == 1
    assert seen["octavo_inference_tensor_rows_total", *LABELS] == 6
    assert seen["octavo_inference_tensor_batch_rows_sum", *LABELS] == 6
    assert seen["octavo_inference_tensor_runs_total", *LABELS] <= 3
    assert seen["octavo_inference_tensor_request_seconds_count", *LABELS] == 3
    assert seen["octavo_inference_tensor_waiting", *LABELS] == 0
