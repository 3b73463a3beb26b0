"""The vital signs are those of the step that was done, and taking them changes nothing."""

import numpy as np
import pytest
import torch

from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from services.trainer import vitals
from services.trainer.loop import Training


def training():
    shape = Architecture.derive("qwen3", vocab_size=17, context_length=16, width=32, layers=2, heads=2)
    text = np.tile(np.random.default_rng(0).integers(0, 17, 40), 60).astype(np.uint16)
    spec = pb.TrainSpec(
        batch_size=2,
        microbatch_size=2,
        steps=60,
        seed=5,
        device="cpu",
        precision=pb.TRAINING_PRECISION_FP32,
        optimizer=pb.OptimizerSpec(
            matrix_learning_rate=0.02, learning_rate=0.004, beta1=0.8, beta2=0.95, momentum=0.95, gradient_clip=0.1
        ),
        schedule=pb.ScheduleSpec(final_fraction=1.0),
    )
    return Training(spec, shape, training_tokens=text[:2000], validation_tokens=text[2000:], validation_bytes=400)


def test_each_part_is_told_by_its_gradient_its_weights_and_its_update():
    one = training()
    for step in range(1, vitals.INTERVAL_STEPS):
        assert not one.step(step).parts
    before = {name: tensor.clone() for name, tensor in one.state_dict().items() if name.startswith("model.")}
    metric = one.step(vitals.INTERVAL_STEPS)
    after = one.state_dict()
    assert [part.part for part in metric.parts] == ["embedding", "blocks.0", "blocks.1", "head"]
    for part in metric.parts[:3]:
        names = [name for name in before if name.startswith(f"model.{part.part}")]
        weight = torch.cat([after[name].flatten() for name in names]).norm().item()
        update = torch.cat([(after[name] - before[name]).flatten() for name in names]).norm().item()
        assert part.weight_norm == pytest.approx(weight, rel=1e-4)
        assert part.update_ratio == pytest.approx(update / weight, rel=1e-3)
        assert not part.dead_parameters
    # Before clipping, as the norm of the whole is.
    assert sum(part.gradient_norm**2 for part in metric.parts) == pytest.approx(metric.gradient_norm**2, rel=1e-4)
    assert 0 < metric.update_ratio < 1


def test_a_parameter_that_gets_no_gradient_is_dead():
    one = training()
    one.model.blocks[1].output.data.zero_()
    parameters = dict(one.model.named_parameters())
    gradients = [torch.zeros(()) if name == "blocks.1.qkv" else torch.ones(()) for name in parameters]
    parts = vitals.Vitals(parameters, gradients).read()
    assert {part.part: list(part.dead_parameters) for part in parts}["blocks.1"] == ["blocks.1.qkv"]


def test_taking_the_signs_changes_no_bit(monkeypatch):
    watched, unwatched = training(), training()
    with monkeypatch.context() as patch:
        patch.setattr(vitals, "INTERVAL_STEPS", 1)
        losses = [watched.step(step).loss for step in range(1, 4)]
    assert losses == [unwatched.step(step).loss for step in range(1, 4)]
    other = unwatched.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in watched.state_dict().items())
