import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, graph_file, prompt_graph_file, read_json, weights_file
from services.inference.prompt_reader import PromptReader, read_scales
from services.inference.served_graph import ServedGraph

PROMPT = np.arange(50) * 7 % 60


@pytest.fixture(params=[("gpt2", "int8"), ("qwen3", "int8"), ("llama", "int4")])
def opened(request, quantized):
    """Opens a reader over a cache of five rows; another one each time, so that it remembers nothing."""
    family, precision = request.param
    directory = quantized(family)
    architecture = Architecture.from_config(read_json(directory / CONFIG_FILE))
    graphs = [
        ServedGraph(directory / file(precision), architecture, threads=1, spin_us=0)
        for file in (graph_file, prompt_graph_file)
    ]

    def reader():
        cache = graphs[0].new_cache(slots=5, capacity=architecture.context_length)
        scales = read_scales(directory / weights_file(precision), cache.tensors)
        return PromptReader(graphs[1], cache, scales, run_tokens=128), cache

    return reader


def read(reader, row, pieces, start=0):
    """Pieces side by side; the logits after the last token of each."""
    counts = np.array([len(piece) for piece in pieces])
    token_ids = np.zeros((len(pieces), counts.max() + counts.max() % 2), np.int64)
    for line, piece in zip(token_ids, pieces, strict=True):
        line[: len(piece)] = piece
    answers = np.empty((len(pieces), 66), np.float32), np.empty((len(pieces), 32), np.float32)
    reader.read(row, token_ids, counts, start, answers)
    return answers[0]


def codes(cache, row, length):
    return {name: tensor[row, :, :length].tobytes() for name, tensor in cache.tensors.items()}


@pytest.mark.parametrize("cuts", [[33], [1], [20, 40], [49]])
def test_however_a_prompt_is_cut_its_logits_and_its_codes_are_the_same(opened, cuts):
    reader, cache = opened()
    whole = read(reader, 0, [PROMPT])
    for start, end in zip([0, *cuts], [*cuts, 50], strict=True):
        last = read(reader, 1, [PROMPT[start:end]], start)
    assert last.tobytes() == whole.tobytes()
    assert codes(cache, 0, 50) == codes(cache, 1, 50)
    assert any(np.frombuffer(tensor, np.int8).any() for tensor in codes(cache, 0, 50).values())


def test_prompts_read_together_are_as_if_read_alone(opened):
    reader, cache = opened()
    prompts = [PROMPT[:9], PROMPT[20:21], PROMPT[5:40]]
    together = read(reader, 1, prompts)
    for row, prompt in enumerate(prompts, start=1):
        alone, other = opened()
        assert read(alone, 0, [prompt])[0].tobytes() == together[row - 1].tobytes()
        assert codes(cache, row, len(prompt)) == codes(other, 0, len(prompt))


def test_what_another_row_began_with_is_understood_from_its_codes(opened):
    reader, cache = opened()
    whole = read(reader, 0, [PROMPT])
    read(reader, 3, [PROMPT[::-1].copy()])  # the floats are another prompt's by now
    cache.copy(0, 2, 30)
    reader.forget([2])
    assert read(reader, 2, [PROMPT[30:]], 30).tobytes() == whole.tobytes()
    assert codes(cache, 2, 50) == codes(cache, 0, 50)


def test_a_row_that_became_anothers_is_not_taken_for_what_it_was(opened):
    reader, cache = opened()
    read(reader, 0, [PROMPT[:30]])
    other = read(reader, 1, [PROMPT[::-1].copy()])
    read(reader, 0, [PROMPT[:30]])  # held as floats: row 0, 30 tokens
    cache.copy(1, 0, 30)
    reader.forget([0])
    assert read(reader, 0, [PROMPT[::-1][30:].copy()], 30).tobytes() == other.tobytes()
