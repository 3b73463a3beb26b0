import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from octavo.serving import SettingsError
from services.inference.device import ATTENTION_KERNELS, CUDA, Device, choose, open_session
from services.inference.device_array import DeviceArray, DeviceCopier
from services.inference.settings import InferenceSettings

HAS_CUDA = choose("cuda").device.kind == "cuda"


def test_the_processor_is_no_fallback_where_it_was_asked_for():
    assert choose("cpu").device == Device()
    assert not choose("cpu").reason


@pytest.mark.skipif(HAS_CUDA, reason="a CUDA device answers here")
@pytest.mark.parametrize("word", ["auto", "cuda", "cuda:7"])
def test_what_has_no_device_computes_on_the_processor_and_says_why(word):
    choice = choose(word)
    assert choice.device == Device()
    assert f"cuda:{'7' if '7' in word else '0'}" in choice.reason
    assert CUDA not in ort.get_available_providers() or "answers" in choice.reason
    assert CUDA in ort.get_available_providers() or "extra `gpu`" in choice.reason


def test_settings_know_the_words_for_devices():
    for word in ("auto", "cpu", "cuda", "cuda:3"):
        assert InferenceSettings(device=word).device == word
    for word in ("gpu", "cuda:", "cuda:x", ""):
        with pytest.raises(SettingsError, match="none of auto, cpu, cuda"):
            InferenceSettings(device=word)
    for word in ATTENTION_KERNELS:
        assert InferenceSettings(device_attention=word).device_attention == word
    with pytest.raises(SettingsError, match="none of auto, flash, efficient, math"):
        InferenceSettings(device_attention="paged")


def test_a_device_is_named_as_the_runtime_names_it():
    assert [Device().name, Device("cuda", 1).name] == ["cpu", "cuda:1"]


def test_a_cuda_session_asks_for_its_device_for_replays_and_for_kernels():
    [(provider, options)] = Device("cuda", 1).providers(replays=True, attention_kernels=2)
    assert provider == CUDA
    assert options["device_id"] == "1"
    assert options["enable_cuda_graph"] == "1"
    assert options["sdpa_kernel"] == "2"


@pytest.mark.skipif(HAS_CUDA, reason="a CUDA device answers here")
def test_a_session_that_would_compute_elsewhere_is_refused():
    with pytest.raises(Exception, match="CUDA"):
        open_session(Device("cuda"), b"", ort.SessionOptions())


def test_rows_are_copied_and_fetched_as_bytes():
    device = Device()
    arrays = [DeviceArray(device, (3, 5), TensorProto.BFLOAT16) for _ in range(2)]
    values = np.random.default_rng(0).integers(0, 2**16, (2, 3, 5)).astype(np.uint16)
    for array, value in zip(arrays, values, strict=True):
        array.write(value)

    DeviceCopier(device, 2).copy([(array, 0) for array in arrays], [(array, 2) for array in arrays])

    for array, value in zip(arrays, values, strict=True):
        assert (array.read().view(np.uint16) == value[[0, 1, 0]]).all()
    assert (DeviceCopier(device, 1).fetch(arrays[1], 1).view(np.uint16) == values[1, 1]).all()
    assert arrays[0].size_bytes == 30


def test_an_array_is_zero_at_first():
    assert not DeviceArray(Device(), (4, 7), TensorProto.FLOAT).read().any()
