import pytest

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.serving import SettingsError
from services.inference.settings import InferenceSettings


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


@pytest.mark.parametrize(
    ("name", "value"), [("slots", 0), ("waiting_limit", -1), ("threads", -1), ("chunk_tokens", 1 << 20)]
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(SettingsError, match=f"{name} {value} is not between"):
        InferenceSettings(**{name: value})
