import pytest

from octavo.serving import SettingsError
from octavo.v1.deployments_pb2 import Precision
from services.inference.precisions import Preferences
from services.inference.settings import InferenceSettings

FP32, INT8, INT4 = Precision.PRECISION_FP32, Precision.PRECISION_INT8, Precision.PRECISION_INT4


@pytest.mark.parametrize(
    ("preferred", "files", "chosen"),
    [
        ("fp32", ["model.onnx", "model.int8.onnx"], FP32),
        ("fp32", ["model.int8.onnx"], INT8),
        ("int8", ["model.onnx", "model.int8.onnx"], INT8),
        ("int8", ["model.onnx"], FP32),
        ("int4,int8", ["model.onnx", "model.int8.onnx"], INT8),
        ("fp32", [], FP32),
    ],
)
def test_a_version_is_served_in_the_first_precision_it_has_a_graph_in(preferred, files, chosen):
    assert Preferences(preferred).choose(files) == chosen


def test_what_is_not_named_comes_after_what_is_with_fp32_first():
    preferences = Preferences("int4")
    assert preferences.rank(INT4) < preferences.rank(FP32) < preferences.rank(INT8)


@pytest.mark.parametrize("words", ["", "fp64", "int8,", "unspecified", "FP32"])
def test_an_unknown_precision_is_refused_with_those_there_are(words):
    with pytest.raises(SettingsError, match="is none of fp32, "):
        InferenceSettings(precisions=words)
