"""Rows that share a sequence learn what they would learn alone, and the end of every answer is learnt."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from services.trainer.batches import IGNORED
from services.trainer.evaluation import evaluate
from services.trainer.loop import Training
from services.trainer.model import Transformer
from services.trainer.packed_batches import PackedBatches, Packs
from services.trainer.packing import best_fit
from services.trainer.token_rows import Examples, TokenRows

# The end token of byte-level BPE is 0, which is also what fills a sequence up.
END = 0
CONTEXT = 16
ANSWERS = pb.DataSpec(
    answer_column="output", loss_on=pb.LOSS_TARGET_ANSWER, long_rows=pb.LONG_ROW_POLICY_TRUNCATE_PROMPT, packing=True
)


def token_rows(sizes: list[tuple[int, int]], seed: int = 0) -> TokenRows:
    """Rows of (prompt, answer) tokens, each answer ended."""
    random = np.random.default_rng(seed)
    parts = [np.append(random.integers(1, 17, prompt + answer), END) for prompt, answer in sizes]
    return TokenRows(
        tokens=np.concatenate(parts).astype(np.uint16),
        ends=np.cumsum([len(part) for part in parts]),
        prompts=np.array([prompt for prompt, _ in sizes], np.uint32),
        end_id=END,
    )


def some_rows(count: int = 60, seed: int = 1) -> TokenRows:
    random = np.random.default_rng(seed)
    return token_rows([(int(random.integers(1, 8)), int(random.integers(1, 8))) for _ in range(count)])


def packs_of(rows: TokenRows, data: pb.DataSpec = ANSWERS, *, is_packing: bool = True, seed: int = 3) -> Packs:
    return Packs(Examples.of(rows, data, CONTEXT), context_length=CONTEXT, seed=seed, is_packing=is_packing)


def model(family: str) -> Transformer:
    shape = Architecture.derive(family, vocab_size=17, context_length=CONTEXT, width=32, layers=2, heads=2)
    transformer = Transformer(shape)
    transformer.initialize(5)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return transformer


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("loss_on", [pb.LOSS_TARGET_ANSWER, pb.LOSS_TARGET_ALL])
def test_packed_rows_have_the_loss_and_the_gradient_that_they_have_alone(family: str, loss_on: int) -> None:
    data = pb.DataSpec(loss_on=loss_on)
    rows, transformer = some_rows(), model(family)
    packs = packs_of(rows, data)
    batch = packs.batch(range(len(packs)))
    assert len(packs) < len(rows) / 1.5
    packed = transformer.loss(batch.tokens, batch.targets, positions=batch.positions)
    packed.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in transformer.named_parameters()}
    transformer.zero_grad()
    alone, count = torch.zeros(()), 0
    for begin, end, prompt in zip(rows.begins, rows.ends, rows.prompts, strict=True):
        ids = torch.from_numpy(rows.tokens[begin:end].astype(np.int64))
        learnt = 1 if loss_on == pb.LOSS_TARGET_ALL else int(prompt)
        logits = transformer(ids[None, :-1])[0, learnt - 1 :]
        alone = alone + torch.nn.functional.cross_entropy(logits, ids[learnt:], reduction="sum")
        count += len(ids) - learnt
    alone.backward()
    assert batch.target_count == count
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    for name, parameter in transformer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_blocked_kernel_keeps_rows_apart_too() -> None:
    """Sequences longer than those for which dense products are faster."""
    shape = Architecture.derive("qwen3", vocab_size=17, context_length=640, width=32, layers=1, heads=2)
    transformer = Transformer(shape)
    transformer.initialize(5)
    rows = token_rows([(200, 90), (30, 300), (1, 1)])
    packs = Packs(Examples.of(rows, ANSWERS, 640), context_length=640, seed=0, is_packing=True)
    batch = packs.batch([0])
    together = transformer(batch.tokens, positions=batch.positions)
    places = torch.nonzero(batch.positions[0] == 0).flatten()[:3]
    for at, begin, end in zip(places, rows.begins, rows.ends, strict=True):
        ids = torch.from_numpy(rows.tokens[begin : end - 1].astype(np.int64))
        torch.testing.assert_close(together[0, at : at + len(ids)], transformer(ids[None])[0], rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=80), st.integers(0, 9))
def test_every_example_is_in_one_sequence_that_has_room_for_it(lengths: list[int], seed: int) -> None:
    sizes = np.array(lengths)
    order, bounds = best_fit(sizes, CONTEXT, seed)
    assert sorted(order) == list(range(len(sizes)))
    filled = [sizes[order[begin:end]].sum() for begin, end in pairwise(bounds)]
    assert all(0 < total <= CONTEXT for total in filled)
    # Two that are at most half full would have become one.
    assert sum(total <= CONTEXT // 2 for total in filled) <= 1


@given(step=st.integers(1, 10**9), seed=st.integers(-(2**63), 2**63 - 1))
def test_a_packed_batch_depends_on_seed_and_step_alone(step: int, seed: int) -> None:
    one, other = (PackedBatches(packs_of(some_rows(), seed=seed), batch_size=3, seed=seed) for _ in range(2))
    other.batch(1)
    assert torch.equal(one.batch(step).tokens, other.batch(step).tokens)


def test_an_epoch_learns_every_row_once_and_every_end() -> None:
    rows = some_rows()
    packs = packs_of(rows)
    batches = PackedBatches(packs, batch_size=1, seed=4)
    for epoch in range(2):
        targets = torch.cat([batches.batch(epoch * len(packs) + n + 1).targets.flatten() for n in range(len(packs))])
        learnt = targets[targets != IGNORED]
        assert (learnt == END).sum() == len(rows)
        assert sorted(learnt.tolist()) == sorted(Examples.of(rows, ANSWERS, CONTEXT).learnt.tolist())


def test_without_packing_each_row_has_a_sequence_of_its_own() -> None:
    rows = some_rows(10)
    packs = packs_of(rows, is_packing=False)
    batch = packs.batch(range(10))
    assert len(packs) == 10
    for row, (begin, end) in enumerate(zip(rows.begins, rows.ends, strict=True)):
        assert batch.tokens[row, : end - begin - 1].tolist() == rows.tokens[begin : end - 1].tolist()
        assert (batch.tokens[row, end - begin - 1 :] == 0).all()


def test_a_long_row_loses_the_beginning_of_its_prompt_and_never_its_answer() -> None:
    rows = token_rows([(20, 5), (3, 16), (3, 15), (2, 2)])
    examples = Examples.of(rows, ANSWERS, CONTEXT)
    assert (examples.truncated, examples.dropped) == (2, 1)
    spans = [rows.tokens[begin:end].tolist() for begin, end in zip(examples.begins, examples.ends, strict=True)]
    assert spans[0] == rows.tokens[9:26].tolist()
    learnt = [rows.tokens[first:end].tolist() for first, end in zip(examples.firsts, examples.ends, strict=True)]
    assert learnt == [
        rows.tokens[begin:end].tolist() for begin, end in [(20, 26), (rows.begins[2] + 3, rows.ends[2]), (67, 70)]
    ]


def test_rows_that_do_not_fit_can_be_left_out() -> None:
    dropping = pb.DataSpec(loss_on=pb.LOSS_TARGET_ANSWER, long_rows=pb.LONG_ROW_POLICY_DROP)
    examples = Examples.of(token_rows([(20, 5), (3, 16), (2, 2)]), dropping, CONTEXT)
    assert (len(examples), examples.truncated, examples.dropped) == (1, 0, 2)
    with pytest.raises(FailedPrecondition, match="context_length to 25"):
        Examples.of(token_rows([(20, 5)]), dropping, CONTEXT)


def test_a_whole_text_is_learnt_in_pieces_that_miss_no_token() -> None:
    rows = token_rows([(0, 40), (0, 15), (0, 16), (0, 1)])
    examples = Examples.of(rows, pb.DataSpec(text_column="text"), CONTEXT)
    for begin, end in zip(rows.begins, rows.ends, strict=True):
        inside = (examples.begins >= begin) & (examples.ends <= end)
        learnt = [i for b, e in zip(examples.firsts[inside], examples.ends[inside], strict=True) for i in range(b, e)]
        assert learnt == list(range(begin + 1, end))


@pytest.mark.parametrize("damage", ["no end", "all prompt"])
def test_a_row_whose_end_would_not_be_learnt_is_refused(damage: str) -> None:
    rows = some_rows(5)
    if damage == "no end":
        rows.tokens[rows.ends[2] - 1] = 7
    else:
        rows.prompts[2] = rows.ends[2] - rows.begins[2]
    with pytest.raises(FailedPrecondition, match="rows do not end with the token that ends an answer"):
        Examples.of(rows, ANSWERS, CONTEXT)


def test_an_evaluation_of_rows_is_that_of_each_row_alone() -> None:
    transformer, rows = model("qwen3"), some_rows(30)
    nats, right, count, whole = 0.0, 0, 0, 0
    for begin, end, prompt in zip(rows.begins, rows.ends, rows.prompts, strict=True):
        ids = torch.from_numpy(rows.tokens[begin:end].astype(np.int64))
        logits = transformer(ids[None, :-1])[0, int(prompt) - 1 :].double()
        wanted = ids[int(prompt) :]
        nats += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        hits = logits.argmax(-1) == wanted
        right, count, whole = right + int(hits.sum()), count + len(wanted), whole + bool(hits.all())
    found = evaluate(transformer, Examples.of(rows, ANSWERS, CONTEXT), text_bytes=100)
    assert (found.rows, found.tokens) == (30, count)
    assert found.validation_loss == pytest.approx(nats / count, rel=1e-5)
    assert found.accuracy == pytest.approx(right / count)
    assert found.exact_match == pytest.approx(whole / 30)


def training(**changes: object) -> Training:
    options = {"batch_size": 4, "microbatch_size": 4, "steps": 60, "seed": 5, "precision": pb.TRAINING_PRECISION_FP32}
    spec = pb.TrainSpec(**(options | changes), data=ANSWERS)
    spec.optimizer.MergeFrom(
        pb.OptimizerSpec(matrix_learning_rate=0.02, learning_rate=0.01, beta1=0.8, beta2=0.95, momentum=0.95)
    )
    spec.schedule.MergeFrom(pb.ScheduleSpec(warmup_steps=2, cooldown_fraction=0.5))
    shape = Architecture.derive("qwen3", vocab_size=17, context_length=CONTEXT, width=32, layers=2, heads=2)
    examples = Examples.of(some_rows(24), ANSWERS, CONTEXT)
    return Training(spec, shape, training_tokens=examples, validation_tokens=examples, validation_bytes=100)


def test_accumulation_is_normalised_by_all_targets_of_the_batch() -> None:
    """Microbatches have unequal numbers of targets: a mean of means would be another loss."""
    whole, split = training(), training(microbatch_size=1)
    counts = {int((part[1] != IGNORED).sum()) for part in split._batches.batch(1).split(1)}
    assert len(counts) > 1
    for step in range(1, 4):
        assert split.step(step).loss == pytest.approx(whole.step(step).loss, rel=1e-5)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(split.weights()[name], weight, atol=1e-4, rtol=1e-3)


def test_a_resumed_run_over_packed_rows_ends_with_the_same_bits() -> None:
    unbroken, broken, resumed = (training(dropout=0.1) for _ in range(3))
    losses = [unbroken.step(step).loss for step in range(1, 9)]
    assert [broken.step(step).loss for step in range(1, 6)] == losses[:5]
    resumed.load_state_dict(broken.state_dict())
    assert [resumed.step(step).loss for step in range(6, 9)] == losses[5:]
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_a_model_that_knows_its_rows_by_heart_answers_to_the_letter_and_stops() -> None:
    one = training(steps=150)
    for step in range(1, 151):
        one.step(step)
    assert one.evaluate(150).exact_match > 0.9
    rows = some_rows(24)
    answers = 0
    for begin, end, prompt in zip(rows.begins, rows.ends, rows.prompts, strict=True):
        ids = rows.tokens[begin:end].tolist()
        said = one.sample(ids[: int(prompt)], max_tokens=12, temperature=0, seed=0, end_id=END)
        answers += said == ids[int(prompt) : -1]
    assert answers > 20
