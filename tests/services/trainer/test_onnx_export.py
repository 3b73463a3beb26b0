import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

import octavo
from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import GRAPH_FILE
from octavo.formats.config_json import FAMILIES
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import TensorEntry, TensorHeader, read_header, read_tensor
from services.trainer.graph_session import GraphSession
from services.trainer.onnx_export import build_graph, export_graph
from tests.services.trainer.small_models import SHAPES, architecture, write_model

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are slower on several threads, much slower where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SHAPES)
def exported(request, tmp_path_factory):
    a = architecture(request.param)
    directory = write_model(tmp_path_factory.mktemp(request.param), a)
    export_graph(directory)
    return directory, a


@pytest.fixture(scope="module")
def theirs(exported):
    return AutoModelForCausalLM.from_pretrained(exported[0]).eval()


@pytest.fixture(scope="module")
def oracle(theirs):
    def logits(ids):
        with torch.inference_mode():
            return theirs(torch.from_numpy(ids)[None]).logits[0].numpy()

    return logits


def ids_of(a, length, seed=1):
    return np.random.default_rng(seed).integers(0, a.vocab_size, length)


def test_a_whole_context_scores_as_transformers_does(exported, oracle):
    directory, a = exported
    ids = ids_of(a, a.context_length)
    found = GraphSession(directory / GRAPH_FILE, a).feed_all(ids[None])[0]
    np.testing.assert_allclose(found, oracle(ids), rtol=0, atol=TOLERANCE)


def test_chunks_and_single_steps_through_the_cache_score_as_transformers_does(exported, oracle):
    directory, a = exported
    ids, ends = ids_of(a, 90), [40, 41, 64, *range(65, 91)]
    session, wanted, start = GraphSession(directory / GRAPH_FILE, a), oracle(ids), 0
    for end in ends:
        logits = session.feed(ids[None, start:end])[0]
        np.testing.assert_allclose(logits, wanted[end - 1], rtol=0, atol=TOLERANCE)
        start = end


def clear_text(session, a):
    """A prompt and 200 greedy tokens none of which rounding could decide; the first seed that has such a text."""
    for seed in range(50):
        prompt = ids_of(a, 8, seed)
        written, logits = session.complete(prompt, 200)
        top = np.sort(logits, axis=1)
        if (top[:, -1] - top[:, -2]).min() > TOLERANCE:
            return prompt, written
    raise AssertionError("no text without a tie")


def test_200_greedy_tokens_are_what_transformers_would_choose_after_each_prefix(exported, oracle):
    directory, a = exported
    prompt, written = clear_text(GraphSession(directory / GRAPH_FILE, a), a)
    wanted = oracle(np.concatenate([prompt, written[:-1]]))[len(prompt) - 1 :]
    assert written.tolist() == wanted.argmax(axis=1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_200_greedy_tokens_are_those_that_transformers_generates(tmp_path, family):
    a = architecture(family)
    export_graph(write_model(tmp_path, a))
    prompt, written = clear_text(GraphSession(tmp_path / GRAPH_FILE, a), a)
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), torch.from_numpy(prompt)[None]
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False)
    assert written.tolist() == generated[0, len(prompt) :].tolist()


def test_a_row_has_the_same_bits_alone_and_in_a_ragged_batch(exported):
    directory, a = exported
    lengths = np.array([17, 1, 40])
    ids = np.stack([ids_of(a, 48, seed) for seed in range(3)])
    padded = np.where(np.arange(40) < lengths[:, None], ids[:, :40], 0)
    together, alone = GraphSession(directory / GRAPH_FILE, a), GraphSession(directory / GRAPH_FILE, a)
    together.reset(rows=3)
    batched = [together.feed(padded, lengths)]
    batched += [together.feed(ids[np.arange(3), lengths + step][:, None]) for step in range(8)]
    for row, length in enumerate(lengths):
        alone.reset(rows=1)
        single = [alone.feed(ids[row : row + 1, :length])]
        single += [alone.feed(ids[row : row + 1, length + step, None]) for step in range(8)]
        for ours, theirs in zip(batched, single, strict=True):
            assert ours[row].tobytes() == theirs[0].tobytes()


def test_every_weight_is_a_range_of_the_checkpoint_and_none_is_copied(exported):
    directory, a = exported
    header = read_header(directory / WEIGHTS_FILE)
    model = onnx.load(directory / GRAPH_FILE, load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert {tensor.name for tensor in external} == a.tensors().keys()
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        entry = header.tensors[tensor.name]
        assert place == {"location": WEIGHTS_FILE, "offset": str(entry.offset), "length": str(entry.size_bytes)}
    onnx.load_external_data_for_model(model, str(directory))
    for tensor in model.graph.initializer:
        if tensor.name in header.tensors:
            stored = read_tensor(directory / WEIGHTS_FILE, header.tensors[tensor.name])
            assert np.array_equal(onnx.numpy_helper.to_array(tensor), stored)


def test_a_graph_passes_the_checker_and_says_what_it_is(exported):
    directory, a = exported
    onnx.checker.check_model(directory / GRAPH_FILE)
    model = onnx.load(directory / GRAPH_FILE, load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["octavo.version"] == octavo.__version__
    assert said["octavo.family"] == a.family
    assert said["octavo.context_length"] == str(a.context_length)
    assert Architecture(**json.loads(said["octavo.architecture"])) == a


@pytest.mark.filterwarnings("ignore")
def test_the_runtime_folds_every_preparation_of_weights_when_it_loads(exported, tmp_path):
    directory, a = exported
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(directory / GRAPH_FILE), options)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    assert not counts.keys() & {"Transpose", "Concat", "Expand", "Cos", "Sin"}
    # One MatMul each for q, k, v together, attention out, MLP in (SwiGLU: two) and MLP out; the head is a Gemm.
    assert counts["MatMul"] == (4 if a.family == "gpt2" else 5) * a.layers
    # The runtime's own fusion would bring the slow kernels back; the last one, of answered rows only, may be.
    assert counts["SkipLayerNormalization"] + counts["SkipSimplifiedLayerNormalization"] <= 1
    assert counts["GroupQueryAttention"] == a.layers


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_and_outputs_are_the_contract(family):
    a = architecture(family)
    model = build_graph(a, header_of(a))
    caches = [f"{part}.{layer}" for layer in range(a.layers) for part in ("key", "value")]
    names = ["input_ids", "position_ids", "seqlens_k", "total_sequence_length", "answered"]
    if family != "gpt2":
        names.remove("position_ids")
    assert [value.name for value in model.graph.input] == names + [f"past_{name}" for name in caches]
    assert [value.name for value in model.graph.output] == ["logits", "hidden", *(f"present_{name}" for name in caches)]


def header_of(a):
    """A header as a file of these tensors would have it, without the file."""
    entries, offset = {}, 8
    for name, shape in a.tensors().items():
        size_bytes = 4 * int(np.prod(shape))
        entries[name] = TensorEntry("F32", shape, offset, size_bytes)
        offset += size_bytes
    return TensorHeader(entries, {})


def test_other_tensors_than_the_architectures_are_refused_by_name():
    a = architecture("llama")
    with pytest.raises(InvalidArgument, match=r"lm_head.weight.*is missing"):
        build_graph(Architecture(**(a.to_dict() | {"tie_embeddings": False})), header_of(a))


def test_the_same_checkpoint_gives_the_same_graph_bytes(tmp_path):
    graphs = []
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        export_graph(write_model(tmp_path / name, architecture("qwen3")))
        graphs.append((tmp_path / name / GRAPH_FILE).read_bytes())
    assert graphs[0] == graphs[1]


def test_a_graph_is_small_beside_its_weights(tmp_path):
    a = Architecture.derive("gpt2", vocab_size=50257, context_length=1024, width=768, layers=12, heads=12)
    assert len(build_graph(a, header_of(a)).SerializeToString()) < 100_000
