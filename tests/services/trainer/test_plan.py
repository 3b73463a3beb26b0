"""A plan derives every field from one dial, keeps what was set, and says what is wrong before anything runs."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.machine import Machine
from services.trainer.plan import (
    architecture_of,
    estimate_text,
    plan,
    resolve,
    resolve_tokenizer,
    steps_within,
)
from services.trainer.text_facts import TextFacts

MACHINE = Machine(device="cpu", threads=2, has_bf16=True, memory_bytes=16 << 30)
TEXT = TextFacts(train_tokens=1_003_854, validation_tokens=111_540, vocab_size=65)
OUTSIDE_THE_RECIPE = {
    "aliases",
    "base_version",
    "data",
    "dataset",
    "deployment",
    "early_stopping",
    "export_precisions",
    "lora",
    "model",
    "time_budget",
    "tokenizer",
    "price_per_hour",
    "prompt",
    "prompts",
    "target_loss",
}


def faults_of(spec: pb.TrainSpec, text: TextFacts = TEXT) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as refused:
        plan(spec, text, MACHINE)
    return refused.value.violations


def warned(answer: pb.Plan) -> set[str]:
    assert all(w.description and w.fix for w in answer.warnings)
    return {w.field for w in answer.warnings}


def unset(message: object, prefix: str = "") -> set[str]:
    """Paths of fields that are not set, messages searched."""
    missing = set()
    for field in message.DESCRIPTOR.fields:
        if field.name in OUTSIDE_THE_RECIPE:
            continue
        value = getattr(message, field.name)
        if field.is_repeated or not field.has_presence:
            missing |= set() if value else {prefix + field.name}
        elif not message.HasField(field.name):
            missing.add(prefix + field.name)
        elif field.message_type is not None:
            missing |= unset(value, f"{prefix}{field.name}.")
    return missing


def test_an_empty_spec_is_filled_completely() -> None:
    assert unset(resolve(pb.TrainSpec(), TEXT, MACHINE)) == set()


def test_what_was_set_stays() -> None:
    asked = pb.TrainSpec(
        family=pb.MODEL_FAMILY_LLAMA,
        architecture=pb.Architecture(width=96, heads=3, kv_heads=1, tie_embeddings=True),
        batch_size=6,
        microbatch_size=3,
        steps=7,
        dropout=0.0,
        optimizer=pb.OptimizerSpec(weight_decay=0.0, learning_rate=0.0),
        evaluation_interval_steps=0,
        seed=0,
    )
    full = resolve(asked, TEXT, MACHINE)
    merged = pb.TrainSpec()
    merged.CopyFrom(full)
    merged.MergeFrom(asked)
    assert merged == full


def test_resolving_a_resolved_spec_changes_nothing() -> None:
    full = resolve(pb.TrainSpec(size=6), TEXT, MACHINE)
    assert resolve(full, TEXT, MACHINE) == full


def test_the_default_has_about_eight_hundred_thousand_parameters() -> None:
    answer = plan(pb.TrainSpec(), TEXT, MACHINE)
    assert 700_000 < answer.parameter_count < 900_000
    assert answer.tokens_per_step == answer.train.batch_size * answer.train.architecture.context_length
    assert answer.epochs == pytest.approx(answer.total_steps * answer.tokens_per_step / TEXT.train_tokens)
    assert not warned(answer)


@given(size=st.integers(1, 48), tokens=st.integers(200, 10**10), vocab=st.integers(2, 65_536))
def test_every_size_and_amount_of_text_gives_a_possible_model(size: int, tokens: int, vocab: int) -> None:
    text = TextFacts(train_tokens=tokens, validation_tokens=max(2, tokens // 9), vocab_size=vocab)
    answer = plan(pb.TrainSpec(size=size), text, MACHINE)
    shape = architecture_of(answer.train)
    assert shape.layers == size
    assert shape.context_length < tokens
    assert answer.train.batch_size % answer.train.microbatch_size == 0
    assert answer.parameter_count == shape.parameters
    assert min(answer.memory_bytes, answer.total_steps, answer.step_flops) > 0


def test_larger_sizes_have_more_parameters() -> None:
    counts = [plan(pb.TrainSpec(size=n), TEXT, MACHINE).parameter_count for n in range(1, 49)]
    assert counts == sorted(set(counts))


def test_a_time_budget_is_an_estimate_until_the_step_is_measured_and_steps_after() -> None:
    asked = pb.TrainSpec(time_budget=Duration(seconds=20))
    before = plan(asked, TEXT, MACHINE)
    assert before.train.WhichOneof("stop") == "time_budget"
    assert before.total_steps > 1
    after = plan(asked, TEXT, MACHINE, step_s=0.05, spent_s=2.0)
    assert after.train.steps == after.total_steps == 360
    assert resolve(after.train, TEXT, MACHINE).steps == 360


def test_a_budget_shorter_than_a_step_still_takes_one() -> None:
    assert steps_within(-1.0, 0.1) == steps_within(0.01, 0.1) == 1


@pytest.mark.parametrize(
    ("spec", "field", "hint"),
    [
        (pb.TrainSpec(architecture=pb.Architecture(heads=3)), "architecture.heads", "architecture.heads to 2"),
        (pb.TrainSpec(architecture=pb.Architecture(heads=16)), "architecture.heads", "multiple of 16"),
        (pb.TrainSpec(architecture=pb.Architecture(heads=4, kv_heads=3)), "architecture.kv_heads", "kv_heads to 2"),
        (pb.TrainSpec(architecture=pb.Architecture(width=-8)), "architecture.width", "from 1"),
        (pb.TrainSpec(architecture=pb.Architecture(layers=0)), "architecture.layers", "from 1"),
        (pb.TrainSpec(size=0), "size", "from 1 to 48"),
        (pb.TrainSpec(steps=-3), "steps", "leave it out"),
        (pb.TrainSpec(dropout=1.0), "dropout", "below 1"),
        (pb.TrainSpec(batch_size=12, microbatch_size=5), "microbatch_size", "to 4"),
        (pb.TrainSpec(optimizer=pb.OptimizerSpec(learning_rate=-1)), "optimizer.learning_rate", "0.001"),
        (pb.TrainSpec(optimizer=pb.OptimizerSpec(learning_rate=float("nan"))), "optimizer.learning_rate", "0.001"),
        (pb.TrainSpec(optimizer=pb.OptimizerSpec(beta2=1.0)), "optimizer.beta2", "0.95"),
        (pb.TrainSpec(schedule=pb.ScheduleSpec(cooldown_fraction=1.5)), "schedule.cooldown_fraction", "0.6"),
        (pb.TrainSpec(checkpoints=pb.CheckpointPolicy(keep_latest=1)), "checkpoints.keep_latest", "fallback"),
        (pb.TrainSpec(sample=pb.SampleSpec(temperature=-1)), "sample.temperature", "0.8"),
        (pb.TrainSpec(tokenizer=pb.TokenizerSpec(vocab_size=10)), "tokenizer.vocab_size", "257"),
        (pb.TrainSpec(validation_fraction=0.9), "validation_fraction", "0.1"),
        (pb.TrainSpec(device="tpu"), "device", "cpu, cuda"),
        (pb.TrainSpec(ema_decay=1.0), "ema_decay", "0.99"),
        (pb.TrainSpec(threads=0), "threads", "leave it out"),
        (
            pb.TrainSpec(architecture=pb.Architecture(context_length=4_000_000)),
            "architecture.context_length",
            "from 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_field_with_what_would_be_right(spec: pb.TrainSpec, field: str, hint: str) -> None:
    wrong = faults_of(spec)
    assert hint in wrong[f"job.train.{field}"]


def test_a_context_longer_than_the_text_is_refused_with_the_longest_that_fits() -> None:
    text = TextFacts(train_tokens=500, validation_tokens=50, vocab_size=30)
    spec = pb.TrainSpec(architecture=pb.Architecture(context_length=512))
    assert "at most 499" in faults_of(spec, text)["job.train.architecture.context_length"]


def test_all_faults_are_named_at_once() -> None:
    spec = pb.TrainSpec(size=99, dropout=-0.5, optimizer=pb.OptimizerSpec(momentum=2.0))
    assert set(faults_of(spec)) == {"job.train.size", "job.train.dropout", "job.train.optimizer.momentum"}


def test_the_text_is_estimated_by_its_size() -> None:
    characters = estimate_text(1_000_000, pb.TrainSpec(validation_fraction=0.2))
    assert characters.train_tokens == 800_000
    assert characters.train_tokens + characters.validation_tokens == 1_000_000
    large = estimate_text(100_000_000, pb.TrainSpec())
    assert large.vocab_size > 1024
    assert 20_000_000 < large.train_tokens < 50_000_000


def test_small_texts_are_read_by_character_and_large_ones_by_trained_vocabulary() -> None:
    assert resolve_tokenizer(pb.TokenizerSpec(), 1 << 20).kind == pb.TOKENIZER_KIND_CHARACTER
    large = resolve_tokenizer(pb.TokenizerSpec(), 64 << 20)
    assert (large.kind, large.vocab_size) == (pb.TOKENIZER_KIND_BYTE_BPE, 16_384)
    asked = resolve_tokenizer(pb.TokenizerSpec(vocab_size=512), 1000)
    assert (asked.kind, asked.vocab_size) == (pb.TOKENIZER_KIND_BYTE_BPE, 512)


@pytest.mark.parametrize(
    ("spec", "text", "field"),
    [
        (pb.TrainSpec(steps=20), TEXT, "train.steps"),
        (pb.TrainSpec(size=24, steps=200), TEXT, "train.size"),
        (pb.TrainSpec(steps=20_000, dropout=0.0), TEXT, "train.dropout"),
        (
            pb.TrainSpec(),
            TextFacts(train_tokens=9000, validation_tokens=1000, vocab_size=60),
            "train.validation_fraction",
        ),
        (pb.TrainSpec(threads=64), TEXT, "train.threads"),
        (pb.TrainSpec(size=48, batch_size=4096, microbatch_size=4096), TEXT, "train.microbatch_size"),
    ],
)
def test_what_will_disappoint_is_said_with_its_fix(spec: pb.TrainSpec, text: TextFacts, field: str) -> None:
    assert field in warned(plan(spec, text, MACHINE))


def test_emulated_bf16_is_warned_about_and_never_chosen() -> None:
    old = Machine(device="cpu", threads=2, has_bf16=False, memory_bytes=0)
    assert resolve(pb.TrainSpec(), TEXT, old).precision == pb.TRAINING_PRECISION_FP32
    forced = pb.TrainSpec(precision=pb.TRAINING_PRECISION_BF16)
    assert "train.precision" in warned(plan(forced, TEXT, old))


def test_this_machine_is_found_with_at_least_a_thread_and_some_memory() -> None:
    here = Machine.detect(device="cpu")
    assert here.threads >= 1
    assert here.memory_bytes > 1 << 28
    assert here.flops(is_bf16=False) > 0
