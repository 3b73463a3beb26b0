"""A run is a function of its spec: resumed anywhere, it ends with the same bits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.loop import Training

ROOT = Path(__file__).parents[3]


def spec(**changes: object) -> pb.TrainSpec:
    options: dict[str, object] = {
        "batch_size": 4,
        "microbatch_size": 2,
        "steps": 12,
        "seed": 5,
        "dropout": 0.1,
        "ema_decay": 0.5,
        "device": "cpu",
        "precision": pb.TRAINING_PRECISION_BF16,
        "optimizer": pb.OptimizerSpec(
            matrix_learning_rate=0.02, learning_rate=0.004, beta1=0.8, beta2=0.95, momentum=0.95, gradient_clip=1.0
        ),
        "schedule": pb.ScheduleSpec(warmup_steps=2, cooldown_fraction=0.5, final_fraction=0.0),
    }
    return pb.TrainSpec(**(options | changes))


def training(family: str = "qwen3", **changes: object) -> Training:
    shape = Architecture.derive(family, vocab_size=17, context_length=16, width=32, layers=2, heads=2)
    period = np.random.default_rng(0).integers(0, 17, 40)
    text = np.tile(period, 60).astype(np.uint16)
    return Training(
        spec(**changes), shape, training_tokens=text[:2000], validation_tokens=text[2000:], validation_bytes=400
    )


def digest(state: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def run(one: Training, first: int, last: int) -> list[float]:
    return [one.step(step).loss for step in range(first, last + 1)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_resumed_run_ends_with_the_same_bits_as_an_unbroken_one(family: str) -> None:
    unbroken = training(family)
    losses = run(unbroken, 1, 12)
    broken = training(family)
    before = run(broken, 1, 7)
    resumed = training(family)
    resumed.load_state_dict(broken.state_dict())
    assert before + run(resumed, 8, 12) == losses
    assert digest(resumed.state_dict()) == digest(unbroken.state_dict())


def test_a_run_resumed_in_another_process_ends_with_the_same_bits(tmp_path: Path) -> None:
    unbroken = training()
    run(unbroken, 1, 5)
    save_file(unbroken.state_dict(), tmp_path / "at5")
    run(unbroken, 6, 9)
    script = (
        "import sys, importlib.util, torch; from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(1)\n"
        "found = importlib.util.spec_from_file_location('this_test', sys.argv[1])\n"
        "test = importlib.util.module_from_spec(found); found.loader.exec_module(test)\n"
        "one = test.training(); one.load_state_dict(load_file(sys.argv[2] + '/at5'))\n"
        "test.run(one, 6, 9); save_file(one.state_dict(), sys.argv[2] + '/at9')\n"
    )
    subprocess.run([sys.executable, "-c", script, __file__, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    assert digest(load_file(tmp_path / "at9")) == digest(unbroken.state_dict())


def test_the_split_into_microbatches_does_not_change_what_is_learnt() -> None:
    options = {"dropout": 0.0, "precision": pb.TRAINING_PRECISION_FP32}
    whole, split = training(microbatch_size=4, **options), training(microbatch_size=1, **options)
    assert run(split, 1, 3) == pytest.approx(run(whole, 1, 3), rel=1e-5)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(split.weights()[name], weight, atol=1e-4, rtol=1e-3)


def test_it_learns_a_repeating_text() -> None:
    one = training(steps=60, batch_size=16, microbatch_size=16, dropout=0.0, ema_decay=0.0)
    losses = run(one, 1, 60)
    assert losses[0] == pytest.approx(np.log(17), abs=0.05)
    assert one.evaluate(60).validation_loss < 1.0


def test_a_loss_that_is_not_finite_stops_the_run_with_the_weights_as_they_were() -> None:
    one = training()
    run(one, 1, 2)
    one.model.embedding.data[3, 3] = float("nan")
    before = digest(one.state_dict())
    with pytest.raises(FailedPrecondition, match="half of") as stopped:
        run(one, 3, 3)
    assert stopped.value.reason == Reason.REASON_TRAINING_DIVERGED
    assert digest(one.state_dict()) == before


def test_measuring_the_speed_leaves_the_run_as_it_was() -> None:
    one = training()
    run(one, 1, 2)
    before = digest(one.state_dict())
    assert one.measure_step_s(at_least_s=0.0) > 0
    assert digest(one.state_dict()) == before


def test_a_live_command_scales_both_rates() -> None:
    one = training()
    planned = one.rates(4)
    one.learning_rate_factor = 0.5
    metric = one.step(4)
    assert metric.learning_rate == pytest.approx(planned.learning_rate / 2)
    assert metric.matrix_learning_rate == pytest.approx(planned.matrix_learning_rate / 2)


def test_the_average_is_evaluated_and_exported_while_training_goes_on_with_the_weights() -> None:
    averaged, plain = training(ema_decay=0.9), training(ema_decay=0.0)
    losses = run(averaged, 1, 4)
    averaged.evaluate(4)
    assert not torch.equal(averaged.weights()["model.norm.weight"], plain.weights()["model.norm.weight"])
    assert run(plain, 1, 4) == losses
    assert run(averaged, 5, 6) == run(plain, 5, 6)


def test_a_sample_is_a_function_of_its_seed_and_longer_than_the_context() -> None:
    one = training()
    first, again, other = (one.sample([1, 2], max_tokens=40, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 40
    assert all(0 <= token < 17 for token in first)
    assert one.sample([1], max_tokens=3, temperature=0.0, seed=1) == one.sample(
        [1], max_tokens=3, temperature=0.0, seed=2
    )


def test_a_gradient_above_the_limit_is_scaled_down_to_it() -> None:
    free = training(optimizer=pb.OptimizerSpec(learning_rate=0.01, beta1=0.8, beta2=0.95, gradient_clip=0.0))
    tight = training(optimizer=pb.OptimizerSpec(learning_rate=0.01, beta1=0.8, beta2=0.95, gradient_clip=1e-3))
    assert free.step(1).gradient_norm == pytest.approx(tight.step(1).gradient_norm, rel=1e-6)
    moments = tight.state_dict()
    squared = sum((t.double() ** 2).sum().item() for n, t in moments.items() if "first_moment" in n)
    assert squared**0.5 <= 0.2 * 1e-3 * 1.01  # the first moment is (1 - beta1) of the clipped gradient


def test_a_state_of_another_run_is_refused_and_changes_nothing() -> None:
    one = training()
    before = digest(one.state_dict())
    state = training("llama").state_dict()
    with pytest.raises(InvalidArgument) as refused:
        one.load_state_dict(state)
    assert "model.blocks.0.q_gain" in refused.value.violations
    assert digest(one.state_dict()) == before
