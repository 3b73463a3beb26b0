import asyncio
import json
import logging
from time import perf_counter

import numpy as np
import pytest

from octavo.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from services.inference.batch_policy import BatchPolicy
from services.inference.tensor_model import TensorModel
from tests.services.inference import tensor_graphs

LONG_US = 10_000_000
"""Longer than any test takes: what runs before has not waited it out."""


@pytest.fixture
async def opened():
    """Opens graphs as models, and stops them at the end."""
    models = []

    async def opening(graph, limit=1 << 30, **policy):
        model = await asyncio.to_thread(
            TensorModel.open,
            graph,
            BatchPolicy(**{"rows": 8, **policy}),
            threads=1,
            spin_us=0,
            size_limit_bytes=limit,
            loop=asyncio.get_running_loop(),
            name="test",
            logger=logging.getLogger("octavo.test"),
        )
        models.append(model)
        return model

    yield opening
    for model in models:
        await asyncio.to_thread(model.stop)


def floats(*rows):
    return np.array(rows, np.float32)


async def ask(model, wanted=(), deadline_s=float("inf"), **arrays):
    return await model.answer(model.request(arrays, wanted, deadline_s=deadline_s))


async def test_outputs_come_in_the_graphs_order_or_as_they_are_asked_for(opened, tmp_path):
    model = await opened(tensor_graphs.affine(tmp_path))
    a, b = floats([1, 2]), floats([10, 20])
    y, twice = await ask(model, a=a, b=b)
    assert y.tolist() == [[12, 24]]
    assert twice.tolist() == [[2, 4]]
    (alone,) = await ask(model, ["twice"], a=a, b=b)
    assert alone.tolist() == [[2, 4]]


async def test_requests_share_a_run_and_each_gets_its_own_rows_to_the_bit(opened, tmp_path):
    model = await opened(tensor_graphs.affine(tmp_path), delay_us=LONG_US)
    random = np.random.default_rng(0)
    inputs = [(random.random((rows, 3), np.float32), random.random((rows, 3), np.float32)) for rows in (1, 3, 2, 2)]
    together = await asyncio.gather(*(ask(model, a=a, b=b) for a, b in inputs))
    assert model.meter.execution_count == 1
    assert list(model.meter.runs) == [8]
    for (a, b), (y, twice) in zip(inputs, together, strict=True):
        assert (y == 2 * a + b).all()
        assert (twice == 2 * a).all()


async def test_only_requests_of_one_shape_share_a_run(opened, tmp_path):
    model = await opened(tensor_graphs.affine(tmp_path), rows=2, delay_us=LONG_US)
    wide, narrow = floats([1, 2, 3]), floats([1])
    answers = await asyncio.gather(*(ask(model, ["y"], a=x, b=x) for x in (wide, narrow, wide, narrow)))
    assert [y.shape for (y,) in answers] == [(1, 3), (1, 1), (1, 3), (1, 1)]
    assert model.meter.execution_count == 2


async def test_a_run_that_fails_harms_only_the_request_to_blame(opened, tmp_path):
    model = await opened(tensor_graphs.lookup(tmp_path), rows=4, delay_us=LONG_US)
    indices = [0, 7, 2, 1]
    answers = await asyncio.gather(
        *(ask(model, index=np.array([[index]])) for index in indices), return_exceptions=True
    )
    assert isinstance(answers[1], InvalidArgument)
    assert "cannot take these values" in answers[1].message
    assert [answers[place][0].item() for place in (0, 2, 3)] == [10, 30, 20]
    assert model.meter.outcomes == {"ok": 3, "invalid_field": 1}


async def test_a_graph_whose_rows_depend_on_one_another_runs_each_request_by_itself(opened, tmp_path):
    model = await opened(tensor_graphs.centred(tmp_path), delay_us=LONG_US)
    assert model.policy.rows == 0
    answers = await asyncio.gather(*(ask(model, x=floats([row, 0, 0], [0, 0, 0])) for row in (2, 4)))
    assert [y[0, 0] for (y,) in answers] == [1, 2]


async def test_a_graph_of_fixed_sizes_runs_each_request_by_itself(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path, shape=(2, 3)))
    assert model.policy.rows == 0
    (y,) = await ask(model, x=floats([1, 2, 3], [4, 5, 6]))
    assert y.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": floats([1])}, "'b'.*is missing"),
        ({"a": floats([1]), "b": floats([1]), "c": floats([1])}, "'c'.*is not an input; there are a, b"),
        ({"a": floats([1]), "b": np.array([[1]])}, "is INT64; it takes FP32"),
        ({"a": floats([1]), "b": np.float32([1])}, r"has shape \[1\]; it takes \[-1, -1\]"),
        ({"a": floats([1]), "b": floats([1, 2])}, "has 2 where another size 'width' is 1"),
        ({"a": floats([1]), "b": floats([1], [2])}, "has 2 where another size 'batch' is 1"),
        ({"a": np.ones((9, 1), np.float32), "b": np.ones((9, 1), np.float32)}, "has 9 rows; send 1 to 8"),
        ({"a": np.ones((0, 1), np.float32), "b": np.ones((0, 1), np.float32)}, "has 0 rows; send 1 to 8"),
    ],
)
async def test_tensors_that_do_not_fit_are_refused_before_they_join_a_batch(opened, tmp_path, arrays, says):
    model = await opened(tensor_graphs.affine(tmp_path))
    with pytest.raises(InvalidArgument, match=says):
        model.request(arrays, ())


async def test_an_output_that_is_none_is_refused(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path))
    with pytest.raises(InvalidArgument, match=r"'z'.*is not an output; there are y"):
        model.request({"x": floats([1, 2, 3])}, ["z"])
    with pytest.raises(InvalidArgument, match="names one twice"):
        model.request({"x": floats([1, 2, 3])}, ["y", "y"])


async def test_text_goes_in_and_out(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path, "BYTES"))
    (y,) = await ask(model, x=np.array([["ä".encode(), b"", b"z"]], np.object_))
    assert y.tolist() == [["ä", "", "z"]]
    with pytest.raises(InvalidArgument, match="element 1 is not UTF-8 at byte 0"):
        model.request({"x": np.array([[b"a", b"\xff", b"b"]], np.object_)}, ())


async def test_many_words_are_read_beside_the_loop_and_answered_alike(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path, "BYTES", ("batch", "words")))
    words = np.array([[str(number).encode() for number in range(10_000)]], np.object_)
    request = await asyncio.to_thread(model.request, {"x": words}, ())
    (y,) = await model.answer(request)
    assert y[0, [0, 9999]].tolist() == ["0", "9999"]


async def test_a_full_queue_refuses_and_says_when_to_come_back(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path), delay_us=LONG_US, waiting_limit=2)
    x = floats([1, 2, 3])
    waiting = [asyncio.create_task(ask(model, x=x)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as refusal:
        await ask(model, x=x)
    assert refusal.value.retry_after_s > 0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert model.batcher.waiting_count == 0
    assert model.meter.outcomes == {"queue_full": 1, "cancelled": 2}


async def test_a_deadline_ends_the_wait_and_leaves_the_queue_empty(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path), delay_us=LONG_US)
    with pytest.raises(DeadlineExceeded):
        await ask(model, x=floats([1, 2, 3]), deadline_s=perf_counter() + 0.01)
    assert model.batcher.waiting_count == 0
    with pytest.raises(DeadlineExceeded):
        await ask(model, x=floats([1, 2, 3]), deadline_s=perf_counter() - 1)
    assert model.meter.outcomes == {"deadline_exceeded": 2}


async def test_a_run_that_everybody_has_left_is_ended_and_the_next_one_answered(opened, tmp_path):
    model = await opened(tensor_graphs.endless(tmp_path))
    with pytest.raises(DeadlineExceeded):
        await ask(model, x=floats([2]), deadline_s=perf_counter() + 0.05)
    async with asyncio.timeout(10):
        (y,) = await ask(model, x=floats([0]))
    assert y.tolist() == [[0]]


async def test_of_a_thousand_requests_a_third_leaves_and_every_other_gets_its_own(opened, tmp_path):
    model = await opened(tensor_graphs.affine(tmp_path), waiting_limit=1000)
    random = np.random.default_rng(1)

    async def one(number):
        a = np.full((int(random.integers(1, 5)), 2), number, np.float32)
        y, twice = await ask(model, a=a, b=a)
        assert (y == 3 * a).all()
        assert (twice == 2 * a).all()

    tasks = [asyncio.create_task(one(number)) for number in range(999)]
    for number in random.permutation(333) * 3:
        await asyncio.sleep(0)
        tasks[number].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError | None)]
    counted = model.meter.outcomes
    assert counted["ok"] == outcomes.count(None) >= 666
    assert counted["ok"] + counted["cancelled"] == 999
    assert model.batcher.waiting_count == 0


async def test_stopping_ends_a_run_that_would_never_end_and_what_waits_behind_it(opened, tmp_path):
    model = await opened(tensor_graphs.endless(tmp_path))
    running = asyncio.create_task(ask(model, x=floats([2])))
    while model.batcher.waiting_count or not running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    behind = asyncio.create_task(ask(model, x=floats([0])))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.to_thread(model.stop)
        outcomes = await asyncio.gather(running, behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    with pytest.raises(Unavailable):
        await ask(model, x=floats([0]))


async def test_a_version_says_how_it_is_batched(opened, tmp_path):
    wishes = {"max_batch_size": 4, "max_queue_delay_microseconds": LONG_US, "preferred_batch_sizes": [2]}
    tensor_graphs.identity(tmp_path)
    (tmp_path / "serving.json").write_text(json.dumps(wishes))
    model = await opened(tmp_path / "model.onnx")
    assert model.policy == BatchPolicy(rows=4, delay_us=LONG_US, preferred=(2,))
    await asyncio.gather(*(ask(model, x=floats([1, 2, 3])) for _ in range(2)))
    assert list(model.meter.runs) == [2]


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"max_batch_size": -1}, "max_batch_size: -1 is not a whole number from 0 to 65536"),
        ({"max_batch_size": True}, "True is not a whole number"),
        ({"max_queue_delay_microseconds": "5"}, "'5' is not a whole number"),
        ({"preferred_batch_sizes": [9]}, r"\[9\] is not a list of whole numbers from 1 to max_batch_size, which is 8"),
        ({"batch": 3}, "batch: is not one of its fields; there are max_batch_size"),
    ],
)
async def test_wishes_that_cannot_be_are_refused(opened, tmp_path, wishes, says):
    tensor_graphs.identity(tmp_path)
    (tmp_path / "serving.json").write_text(json.dumps(wishes))
    with pytest.raises(InvalidArgument, match=says):
        await opened(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (tensor_graphs.centred, "a row's outputs depend on the other rows"),
        (lambda path: tensor_graphs.identity(path, shape=(2, 3)), "first dimension is fixed"),
    ],
)
async def test_batches_that_a_graph_cannot_have_are_refused(opened, tmp_path, graph, says):
    graph(tmp_path)
    (tmp_path / "serving.json").write_text('{"max_batch_size": 8}')
    with pytest.raises(FailedPrecondition, match=says):
        await opened(tmp_path / "model.onnx")


async def test_weights_in_a_file_beside_the_graph_are_read(opened, tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.float32([10, 20]).tobytes())
    model = await opened(tensor_graphs.beside(tmp_path, "weights.bin"))
    (y,) = await ask(model, x=floats([1, 2]))
    assert y.tolist() == [[11, 22]]


@pytest.mark.parametrize("size", [None, 4])
async def test_weights_that_are_missing_or_cut_short_are_refused(opened, tmp_path, size):
    if size:
        (tmp_path / "weights.bin").write_bytes(bytes(size))
    with pytest.raises(FailedPrecondition, match=r"cannot load model\.onnx"):
        await opened(tensor_graphs.beside(tmp_path, "weights.bin"))


@pytest.mark.parametrize("location", ["../outside.bin", "{root}/outside.bin", "sub/../../outside.bin", "link.bin"])
async def test_weights_outside_the_bundle_are_never_read(opened, tmp_path, location):
    (tmp_path / "outside.bin").write_bytes(np.float32([10, 20]).tobytes())
    bundle = tmp_path / "bundle"
    graph = tensor_graphs.beside(bundle, location.format(root=tmp_path))
    (bundle / "link.bin").symlink_to("../outside.bin")
    with pytest.raises(FailedPrecondition, match="External data path"):
        await opened(graph)


async def test_a_graph_that_is_cut_short_or_too_large_is_refused(opened, tmp_path):
    graph = tensor_graphs.identity(tmp_path)
    with pytest.raises(FailedPrecondition, match="more than the limit of 10"):
        await opened(graph, limit=10)
    graph.write_bytes(graph.read_bytes()[:-20])
    with pytest.raises(FailedPrecondition, match=r"cannot load model\.onnx"):
        await opened(graph)


async def test_operators_of_others_are_refused(opened, tmp_path):
    node = tensor_graphs.helper.make_node("Steal", ["x"], ["y"], domain="elsewhere")
    shape = ["batch", 1]
    graph = tensor_graphs.save(
        tmp_path, [node], [tensor_graphs.value("x", "FP32", shape)], [tensor_graphs.value("y", "FP32", shape)]
    )
    with pytest.raises(FailedPrecondition, match="cannot load"):
        await opened(graph)


async def test_statistics_add_up(opened, tmp_path):
    model = await opened(tensor_graphs.identity(tmp_path))
    for rows in (1, 2, 2):
        await ask(model, x=np.ones((rows, 3), np.float32))
    meter = model.meter
    assert {rows: runs.count for rows, runs in meter.runs.items()} == {1: 1, 2: 2}
    assert (meter.rows, meter.execution_count, meter.outcomes["ok"]) == (5, 3, 3)
    assert 0 < meter.infer_s < meter.request_s.total
