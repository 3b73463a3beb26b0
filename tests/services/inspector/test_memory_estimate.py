"""Estimates follow from the tensors, and hold against what really takes the memory."""

import numpy as np
import pytest

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import inspector_pb2 as pb
from services.inspector.memory_estimate import estimate, weights_bytes

PLENTY = 1 << 40


def ask(architecture, available=PLENTY, **fields):
    return estimate(architecture, pb.EstimateMemoryRequest(**fields), available)


def test_weights_and_cache_are_what_numpy_would_allocate(architecture):
    result = ask(architecture, batch_size=3, sequence_length=20)
    assert result.weights_bytes == sum(np.zeros(shape, np.float32).nbytes for shape in architecture.tensors().values())
    cache = np.zeros((architecture.layers, 2, 3, architecture.kv_heads, 20, architecture.head_size), np.float32)
    assert result.cache_bytes == cache.nbytes
    assert result.serving_bytes == result.weights_bytes + result.cache_bytes + result.serving_activation_bytes
    assert result.optimizer_bytes == 2 * result.gradient_bytes == 8 * architecture.parameters
    assert not result.findings


def test_half_precision_halves_weights_and_cache(architecture):
    half = ask(architecture, precision=pb.SERVING_PRECISION_FLOAT16)
    full = ask(architecture)
    assert 2 * half.weights_bytes == full.weights_bytes
    assert 2 * half.cache_bytes == full.cache_bytes


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_precision_is_smaller_than_the_one_before_for_a_model_of_some_size(family, tied):
    architecture = Architecture.derive(
        family, vocab_size=4096, context_length=256, width=512, layers=8, heads=8, tie_embeddings=tied
    )
    sizes = [
        weights_bytes(architecture, precision)
        for precision in (
            pb.SERVING_PRECISION_FLOAT32,
            pb.SERVING_PRECISION_FLOAT16,
            pb.SERVING_PRECISION_INT8,
            pb.SERVING_PRECISION_INT4,
        )
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_int8_weights_of_one_matrix_are_counted_by_hand():
    architecture = Architecture.derive(
        "llama", vocab_size=10, context_length=8, width=32, layers=1, heads=2, mlp_width=64, tie_embeddings=False
    )
    plain = 10 * 32 + 3 * 32
    square, wide, narrow, head = 4 * (32 * 32 + 4 * 32), 2 * (64 * 32 + 4 * 64), 32 * 64 + 4 * 32, 10 * 32 + 4 * 10
    assert weights_bytes(architecture, pb.SERVING_PRECISION_INT8) == 4 * plain + square + wide + narrow + head


def test_capacity_is_as_many_sequences_as_fit_beside_the_weights(architecture):
    roomy = ask(architecture)
    sequence = roomy.cache_bytes_per_token * architecture.context_length
    fixed = roomy.weights_bytes + roomy.serving_activation_bytes
    assert ask(architecture, fixed + 7 * sequence).sequence_capacity == 7
    assert ask(architecture, fixed + 7 * sequence - 1).sequence_capacity == 6
    assert ask(architecture, 10).sequence_capacity == 0


def test_what_does_not_fit_comes_with_what_would(architecture):
    needed = ask(architecture, batch_size=8)
    tight = ask(architecture, needed.serving_bytes - 1, batch_size=8)
    assert [finding.code for finding in tight.findings] == ["serving-does-not-fit", "training-does-not-fit"]
    assert "serve 7 sequences" in tight.findings[0].advice
    training = ask(architecture, needed.training_bytes - 1, batch_size=8)
    assert [finding.advice for finding in training.findings] == ["use microbatches of 7"]
    assert "smaller precision" in ask(architecture, 10).findings[0].advice


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("length", [64, 640])
def test_training_activations_agree_with_what_the_trainer_keeps(family, length):
    torch = pytest.importorskip("torch")
    from services.trainer.model import Transformer

    architecture = Architecture.derive(family, vocab_size=96, context_length=length, width=128, layers=4, heads=4)
    model = Transformer(architecture)
    model.initialize(0)
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.zeros((4, length), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(ids, ids)
    estimated = ask(architecture, batch_size=4).training_activation_bytes
    assert estimated == pytest.approx(sum(kept.values()), rel=0.15)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sequence_length": 33}, "sequence_length"),
        ({"sequence_length": -1}, "sequence_length"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 65_537}, "batch_size"),
    ],
)
def test_impossible_sizes_are_refused(architecture, fields, field):
    with pytest.raises(InvalidArgument) as caught:
        ask(architecture, **fields)
    assert list(caught.value.violations) == [field]
