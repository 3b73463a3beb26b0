"""An inspection tells what an artifact holds and what is wrong with it, from headers alone."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string

from octavo.errors import NotFound
from octavo.formats.architecture import Architecture
from octavo.formats.tensor_file import write_safetensors
from octavo.v1 import inspector_pb2 as pb
from services.inspector.inspection import inspect
from services.trainer.onnx_export import export_graph


def codes(inspection):
    return [finding.code for finding in inspection.findings]


def weights_of(tmp_path, tensors):
    write_safetensors(tmp_path / "w", tensors)
    return (tmp_path / "w").read_bytes()


def graph_with(initializers, nodes=()):
    graph = helper.make_graph(list(nodes), "g", [], [], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


def test_a_bundle_is_sound_and_its_graph_is_its_weights(open_files, bundle, architecture):
    contents = open_files(bundle)
    inspection = inspect(contents, "")
    assert not inspection.findings
    assert [file.format for file in inspection.files] == [
        pb.FILE_FORMAT_JSON,
        pb.FILE_FORMAT_SAFETENSORS,
        pb.FILE_FORMAT_ONNX,
        pb.FILE_FORMAT_TEXT,
    ]
    assert inspection.weights_path == "model.safetensors"
    assert inspection.parameter_count == architecture.parameters
    assert inspection.tensor_count == len(architecture.tensors())
    assert inspection.bytes_by_type[0].type == pb.TENSOR_TYPE_FLOAT32
    assert inspection.bytes_by_type[0].size_bytes == 4 * architecture.parameters
    graph = inspection.files[2].graph
    assert graph.is_backed_by_safetensors
    assert graph.external_data[0].state == pb.EXTERNAL_DATA_STATE_CONTAINED
    assert graph.external_data[0].matched_tensor_count == len(architecture.tensors())
    assert graph.embedded_bytes == 256 + 64
    assert contents.budget.fetched_bytes < inspection.size_bytes / 4


def test_a_packed_matrix_counts_its_weights_not_its_bytes_and_scales_not_at_all(open_files, bundle, architecture):
    graph = inspect(open_files(bundle), "model.onnx").files[0]
    assert graph.parameter_count == architecture.parameters + 64 * 8


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_layers_add_up_to_the_model(open_files, tmp_path, family, tied):
    architecture = Architecture.derive(
        family, vocab_size=96, context_length=16, width=64, layers=3, heads=4, tie_embeddings=tied
    )
    weights = weights_of(
        tmp_path, {name: np.zeros(shape, np.float32) for name, shape in architecture.tensors().items()}
    )
    files = {"config.json": json.dumps(architecture.to_config()).encode(), "model.safetensors": weights}
    inspection = inspect(open_files(files), "")
    layers = inspection.anatomy.layers
    assert codes(inspection) == []
    assert [layer.name for layer in layers][:3] == ["embedding", "blocks.0.attention_norm", "blocks.0.attention"]
    assert len(layers) == 1 + 3 * 4 + 2
    assert sum(layer.parameter_count for layer in layers) == architecture.parameters == inspection.parameter_count
    assert sum(layer.flops_per_token for layer in layers) == inspection.anatomy.flops_per_token
    assert {name for layer in layers for name in layer.tensors} == set(architecture.tensors())
    expected = [pb.TIE_EVIDENCE_CONFIGURATION] if tied else []
    assert [tie.evidence for tie in inspection.ties] == expected


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_the_graph_our_exporter_writes_is_sound_and_backed_by_the_weights(open_files, tmp_path, family):
    architecture = Architecture.derive(family, vocab_size=65, context_length=64, width=64, layers=2, heads=4)
    tensors = {name: np.ones(shape, np.float32) for name, shape in architecture.tensors().items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(architecture.to_config()))
    graph = export_graph(tmp_path).name
    inspection = inspect(open_files({path.name: path.read_bytes() for path in tmp_path.iterdir()}), "")
    assert codes(inspection) == []
    (file,) = (file for file in inspection.files if file.path == graph)
    assert file.graph.is_backed_by_safetensors
    assert file.parameter_count == architecture.parameters


def test_tensors_of_equal_digest_count_once(open_files, tmp_path):
    same = np.ones((4, 4), np.float32)
    files = {"model.safetensors": weights_of(tmp_path, {"wte": same, "lm_head": same, "other": 2 * same})}
    digests = {"wte": "sha256:aa", "lm_head": "sha256:aa", "other": "sha256:bb"}
    inspection = inspect(open_files(files, digests), "")
    assert inspection.parameter_count == 32
    assert [sorted(tie.tensors) for tie in inspection.ties] == [["lm_head", "wte"]]
    assert inspection.ties[0].evidence == pb.TIE_EVIDENCE_EQUAL_DIGEST


def test_initializers_of_the_same_bytes_count_once(open_files, make_external):
    initializers = [make_external(name, TensorProto.FLOAT, (4, 4), "data", 0, 64) for name in ("a", "b")]
    inspection = inspect(open_files({"m.onnx": graph_with(initializers), "data": b"\xfe" * 64}), "")
    assert inspection.parameter_count == 16
    assert inspection.ties[0].evidence == pb.TIE_EVIDENCE_SHARED_BYTES
    assert inspection.files[1].format == pb.FILE_FORMAT_EXTERNAL_DATA
    assert not inspection.files[0].graph.is_backed_by_safetensors


def test_buffers_scales_and_indices_are_no_parameters(open_files, tmp_path):
    tensors = {
        "h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32),
        "h.0.attn.c_attn.weight": np.ones((8, 24), np.int8),
        "h.0.attn.c_attn.weight_scale": np.ones(24, np.float32),
        "ids": np.ones((3, 3), np.int64),
    }
    inspection = inspect(open_files({"model.safetensors": weights_of(tmp_path, tensors)}), "")
    assert inspection.parameter_count == 8 * 24
    assert inspection.tensor_count == 4


def test_weights_that_are_not_the_configurations_are_named(open_files, bundle, architecture, tmp_path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in architecture.tensors().items()}
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.wpe.weight"] = np.zeros((31, 64), np.float32)
    tensors["surprise.weight"] = np.zeros((2, 2), np.float32)
    inspection = inspect(open_files(bundle | {"model.safetensors": weights_of(tmp_path, tensors)}), "model.safetensors")
    assert codes(inspection) == []
    files = {"config.json": bundle["config.json"], "model.safetensors": weights_of(tmp_path, tensors)}
    inspection = inspect(open_files(files), "")
    assert codes(inspection) == ["tensor-misshapen", "tensor-missing", "tensors-unexpected"]
    assert inspection.findings[0].subject == "model.safetensors: transformer.wpe.weight"
    assert inspection.anatomy.layers[-1].name == "other"


def test_a_broken_file_is_a_finding_and_hides_no_other(open_files, bundle):
    files = bundle | {"model.safetensors": bundle["model.safetensors"][:-1], "extra.onnx": bundle["model.onnx"][:-3]}
    inspection = inspect(open_files(files), "")
    assert codes(inspection)[:2] == ["malformed-file", "malformed-file"]
    assert inspection.anatomy.family == "gpt2"
    assert {file.path: file.format for file in inspection.files}["README.md"] == pb.FILE_FORMAT_TEXT


@pytest.mark.parametrize(
    ("location", "offset", "code", "state"),
    [
        ("/etc/passwd", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("../../secret", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("sub/../../secret", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("..\\secret", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("C:/secret", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("file://secret", 0, "external-data-escapes", pb.EXTERNAL_DATA_STATE_ESCAPES),
        ("gone", 0, "external-data-missing", pb.EXTERNAL_DATA_STATE_MISSING),
        ("data", 61, "external-data-out-of-range", pb.EXTERNAL_DATA_STATE_OUT_OF_RANGE),
        ("data", 60, None, pb.EXTERNAL_DATA_STATE_CONTAINED),
        ("./data", 0, None, pb.EXTERNAL_DATA_STATE_CONTAINED),
    ],
)
def test_external_data_is_judged_and_never_followed(open_files, make_external, location, offset, code, state):
    initializer = make_external("w", TensorProto.FLOAT, (1,), location, offset, 4)
    inspection = inspect(open_files({"sub/m.onnx": graph_with([initializer]), "sub/data": b"\xfe" * 64}), "sub/m.onnx")
    assert inspection.files[0].graph.external_data[0].state == state
    assert codes(inspection) == ([code] if code else [])


def test_a_graph_whose_slices_are_not_whole_tensors_is_not_backed(open_files, bundle):
    model = load_from_string(bundle["model.onnx"])
    moved = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "offset")
    moved.value = str(int(moved.value) + 4)
    inspection = inspect(open_files(bundle | {"model.onnx": model.SerializeToString()}), "model.onnx")
    assert not inspection.files[0].graph.is_backed_by_safetensors


def test_foreign_operators_nested_data_and_pickles_are_pointed_out(open_files, make_external):
    nodes = [
        helper.make_node("Evil", ["x"], ["y"], domain="com.example"),
        helper.make_node("Constant", [], ["c"], value=make_external("t", TensorProto.FLOAT, (1,), "../x", 0, 4)),
    ]
    files = {"m.onnx": graph_with([], nodes), "w.bin": b"\x80\x02}q\x00.", "config.json": b'{"auto_map": {}}'}
    inspection = inspect(open_files(files), "")
    assert codes(inspection) == [
        "external-data-nested",
        "custom-operators",
        "runs-code",
        "remote-code",
        "config-unknown",
    ]


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"model_type": "gpt2"}', b'{"a":' * 9999, b" " * 1_048_577])
def test_a_config_that_cannot_be_understood_is_a_finding(open_files, config):
    inspection = inspect(open_files({"config.json": config}), "")
    assert codes(inspection) == ["config-unknown"]
    assert not inspection.HasField("anatomy")


def test_a_path_that_is_not_there_is_answered_with_the_nearest(open_files, bundle):
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        inspect(open_files(bundle), "model.safetensor")


def test_a_blob_is_inspected_by_its_content(open_files, bundle, architecture):
    inspection = inspect(open_files({"": bundle["model.safetensors"]}, name="blobs/sha256:" + "0" * 64), "")
    assert inspection.parameter_count == architecture.parameters
    graph = inspect(open_files({"": bundle["model.onnx"]}, name="blobs/sha256:" + "0" * 64), "")
    assert codes(graph) == ["external-data-unresolved"]
