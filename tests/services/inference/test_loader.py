import asyncio
import logging

import pytest

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.serving import SettingsError
from octavo.v1.deployments_pb2 import Precision
from services.inference.loader import Loader
from services.inference.served_model import Key
from services.inference.settings import InferenceSettings
from services.inference.tensor_model import TensorModel
from tests.services.inference import tensor_graphs


async def test_slots_are_as_many_as_the_memory_allows(bundles, load):
    row_bytes = 2 * 2 * 32 * 96 * 4
    model = await load(bundles(), slots=8, cache_limit_bytes=3 * row_bytes + 1)
    assert model.engine.scheduler.slots == 3
    assert model.cache_size_bytes == 3 * row_bytes


async def test_too_little_memory_for_one_sequence_is_told_with_the_setting(bundles, load):
    with pytest.raises(FailedPrecondition, match="OCTAVO_INFERENCE_CACHE_LIMIT_BYTES"):
        await load(bundles(), cache_limit_bytes=1000)


async def test_the_context_can_be_limited(bundles, load):
    model = await load(bundles(), context_limit=50)
    assert model.capacity == 50


async def test_a_bundle_without_vectors_is_refused(bundles, load, tmp_path):
    for path in bundles().iterdir():
        if path.name != "conformance.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InvalidArgument, match=r"conformance\.json"):
        await load(tmp_path)


@pytest.mark.parametrize("config", [None, '{"model_type": "bert"}'])
async def test_a_graph_that_is_no_bundle_of_ours_is_served_as_tensors(load, tmp_path, config):
    tensor_graphs.identity(tmp_path)
    if config:
        (tmp_path / "config.json").write_text(config)
    model = await load(tmp_path)
    assert isinstance(model, TensorModel)
    assert model.policy.waiting_limit == 256


async def test_tensors_are_served_in_the_precision_that_their_graph_has_alone(load, tmp_path):
    tensor_graphs.identity(tmp_path)
    with pytest.raises(FailedPrecondition, match="no graph in int8"):
        await load(tmp_path, precision=Precision.PRECISION_INT8)


async def test_each_engine_has_a_courier_of_its_own(bundles):
    settings = InferenceSettings(port=0, slots=1, threads=1)
    loader = Loader(settings, asyncio.get_running_loop(), logging.getLogger("octavo.test"))
    key = Key("models/poet/versions/1", Precision.PRECISION_FP32)
    # Shared, one thread's deliveries would get lost while another's depart.
    engines = [(await asyncio.to_thread(loader.load, bundles(), key)).engine for _ in range(2)]
    try:
        assert engines[0]._courier is not engines[1]._courier
    finally:
        for engine in engines:
            await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_rows", 0),
        ("batch_delay_us", -1),
        ("max_message_bytes", 1 << 31),
        ("slots", 0),
        ("waiting_limit", -1),
        ("wait_limit_s", 0),
        ("threads", -1),
        ("chunk_tokens", 1 << 20),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(SettingsError, match=f"{name} {value} is not between"):
        InferenceSettings(**{name: value})
