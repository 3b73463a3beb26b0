"""Values are read exactly as stored, by rectangle, and measured page by page."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound
from octavo.formats.tensor_file import write_safetensors
from octavo.v1 import inspector_pb2 as pb
from services.inspector import value_questions
from services.inspector.value_questions import get_statistics, read_tensor

VERSION = "models/poet/versions/1"
CUBE = np.random.default_rng(5).normal(size=(4, 5, 6)).astype(np.float32)


@pytest.fixture
def cube(open_files, tmp_path):
    write_safetensors(tmp_path / "w", {"cube": CUBE, "other": np.arange(3)})
    files = {"model.safetensors": (tmp_path / "w").read_bytes()}

    def read(**fields):
        return read_tensor(open_files(files), pb.ReadTensorRequest(artifact=VERSION, tensor="cube", **fields))

    return read


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*(st.tuples(st.integers(0, size), st.integers(0, size)) for size in CUBE.shape)))
def test_any_rectangle_is_what_numpy_cuts_out(cube, spans):
    ordered = [sorted(span) for span in spans]
    starts, lengths = [low for low, _ in ordered], [high - low for low, high in ordered]
    expected = CUBE[tuple(slice(low, high) for low, high in ordered)]
    reply = cube(starts=starts, lengths=lengths)
    assert np.array_equal(np.array(reply.values, np.float32).reshape(lengths), expected)
    raw = cube(starts=starts, lengths=lengths, encoding=pb.TENSOR_ENCODING_RAW)
    assert raw.raw == np.ascontiguousarray(expected).tobytes()


def test_without_bounds_the_whole_tensor_is_read(cube):
    assert np.array_equal(np.array(cube().values, np.float32), CUBE.reshape(-1))
    assert list(cube(starts=[1, 0, 0]).lengths) == [3, 5, 6]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"starts": [1]}, "1 numbers for 3 dimensions"),
        ({"lengths": [1, 1]}, "2 numbers for 3 dimensions"),
        ({"starts": [-1, 0, 0]}, "outside"),
        ({"starts": [4, 0, 0], "lengths": [1, 1, 1]}, "outside"),
        ({"lengths": [-1, 1, 1]}, "outside"),
    ],
)
def test_a_rectangle_outside_the_tensor_is_refused(cube, fields, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        cube(**fields)


def test_more_values_than_one_answer_holds_are_refused(open_files, tmp_path):
    write_safetensors(tmp_path / "w", {"big": np.zeros((600, 600), np.int8)})
    contents = open_files({"model.safetensors": (tmp_path / "w").read_bytes()})
    with pytest.raises(InvalidArgument, match="smaller part"):
        read_tensor(contents, pb.ReadTensorRequest(tensor="big"))
    part = read_tensor(contents, pb.ReadTensorRequest(tensor="big", starts=[0, 7], lengths=[600, 1]))
    assert len(part.values) == 600


def test_a_missing_tensor_is_answered_with_the_nearest(open_files, bundle):
    request = pb.ReadTensorRequest(tensor="transformer.wte.wieght")
    with pytest.raises(NotFound, match=r"did you mean transformer\.wte\.weight"):
        read_tensor(open_files(bundle), request)
    with pytest.raises(InvalidArgument, match="names no tensor"):
        read_tensor(open_files(bundle), pb.ReadTensorRequest())


def test_the_graphs_external_values_are_those_of_the_weights(open_files, bundle):
    replies = [
        read_tensor(open_files(bundle), pb.ReadTensorRequest(tensor="transformer.wpe.weight", path=path))
        for path in ("model.onnx", "model.safetensors")
    ]
    assert replies[0].values == replies[1].values


def test_half_bytes_are_unpacked(open_files):
    packed = np.array([0x78, 0xF1, 0x03], np.uint8).tobytes()
    tensor = TensorProto(name="q", data_type=TensorProto.INT4, dims=[5], raw_data=packed)
    graph = helper.make_graph([], "g", [], [], [tensor])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    contents = open_files({"m.onnx": data})
    assert list(read_tensor(contents, pb.ReadTensorRequest(tensor="q")).values) == [-8, 7, 1, -1, 3]
    middle = pb.ReadTensorRequest(tensor="q", starts=[1], lengths=[3])
    assert list(read_tensor(contents, middle).values) == [7, 1, -1]
    statistics = get_statistics(contents, pb.GetTensorStatisticsRequest()).statistics[0]
    assert (statistics.finite_count, statistics.minimum, statistics.maximum) == (5, -8, 7)
    with pytest.raises(InvalidArgument, match="packs two"):
        read_tensor(contents, pb.ReadTensorRequest(tensor="q", encoding=pb.TENSOR_ENCODING_RAW))


def test_values_outside_the_artifact_cannot_be_read(open_files, make_external):
    graph = helper.make_graph([], "g", [], [], [make_external("s", TensorProto.FLOAT, (1,), "/etc/passwd", 0, 4)])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    for ask, request in (
        (read_tensor, pb.ReadTensorRequest(tensor="s")),
        (get_statistics, pb.GetTensorStatisticsRequest(tensors=["s"])),
    ):
        with pytest.raises(FailedPrecondition, match="within the artifact"):
            ask(open_files({"m.onnx": data}), request)


def test_statistics_come_page_by_page_for_all_tensors(open_files, bundle, architecture):
    names, token = [], ""
    while True:
        request = pb.GetTensorStatisticsRequest(page_size=10, page_token=token)
        reply = get_statistics(open_files(bundle), request)
        names += [statistics.tensor.name for statistics in reply.statistics]
        token = reply.next_page_token
        if not token:
            break
    assert sorted(names) == sorted(architecture.tensors())
    assert not reply.findings


def test_a_page_ends_early_when_it_has_read_enough(open_files, bundle, monkeypatch):
    monkeypatch.setattr(value_questions, "_PAGE_BYTES", 20_000)
    reply = get_statistics(open_files(bundle), pb.GetTensorStatisticsRequest())
    assert 0 < len(reply.statistics) < reply.total_size
    assert reply.next_page_token


def test_named_tensors_are_measured_in_the_order_asked(open_files, bundle):
    names = ["transformer.wpe.weight", "transformer.ln_f.bias", "transformer.wpe.weight"]
    reply = get_statistics(open_files(bundle), pb.GetTensorStatisticsRequest(tensors=names))
    assert [statistics.tensor.name for statistics in reply.statistics] == names
    with pytest.raises(InvalidArgument, match="at most 1000"):
        get_statistics(open_files(bundle), pb.GetTensorStatisticsRequest(tensors=["x"] * 1001))
