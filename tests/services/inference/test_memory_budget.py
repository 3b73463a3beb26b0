import onnx
from hypothesis import given
from hypothesis import strategies as st

from services.inference.memory_budget import MemoryBudget, weights_bytes


@given(st.integers(0, 100), st.lists(st.tuples(st.booleans(), st.integers(0, 60))))
def test_never_more_is_promised_than_there_is_and_nothing_is_lost(limit, actions):
    budget, held = MemoryBudget(limit), []
    for is_taking, size in actions:
        if is_taking:
            reservation = budget.reserve(size)
            assert (reservation is None) == (sum(entry.size_bytes for entry in held) + size > limit)
            held += [reservation] if reservation else []
        elif held:
            held.pop(size % len(held)).release()
        assert budget.used_bytes == sum(entry.size_bytes for entry in held) <= limit
    for reservation in held * 2:
        reservation.release()
    assert budget.free_bytes == limit


def test_weights_are_what_the_graph_and_its_external_tensors_take(bundles):
    for family in ("gpt2", "llama", "qwen3"):
        graph = bundles(family) / "model.onnx"
        model = onnx.load(graph, load_external_data=False)
        entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        external = sum(int(entry.value) for entry in entries if entry.key == "length")
        assert external > 100_000
        assert weights_bytes(graph) == graph.stat().st_size + external
