import numpy as np
import pytest

FAMILIES = ("gpt2", "llama", "qwen3")


def complete_alone(session, row, prompt, count, chunk):
    """Greedy ids and all logits of one sequence that has the session to itself."""
    for start in range(0, len(prompt), chunk):
        logits = session.prefill(row, prompt[start : start + chunk], start)
    seen = [logits[0].copy()]
    for length in range(len(prompt), len(prompt) + count - 1):
        session.place(row, int(seen[-1].argmax()), length)
        seen.append(session.decode_row(row)[0].copy())
    return np.array(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_computes_the_same_bits_in_a_batch_as_alone(family, bundles, session_over):
    session = session_over(bundles(family), slots=4)
    prompts = [np.arange(n, dtype=np.int64) * 7 % 60 for n in (1, 5, 17, 33)]
    alone = [complete_alone(session, 0, prompt, 20, 16) for prompt in prompts]

    together = [[] for _ in prompts]
    for row, prompt in enumerate(prompts):
        for start in range(0, len(prompt), 16):
            logits = session.prefill(row, prompt[start : start + 16], start)
        together[row].append(logits[0].copy())
        session.place(row, int(logits[0].argmax()), len(prompt))
    for _ in range(19):
        logits = session.decode(4)
        for row in range(4):
            together[row].append(logits[row].copy())
        session.advance(4, logits.argmax(axis=1))

    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == np.array(other).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_moved_row_goes_on_with_the_same_bits(family, bundles, session_over):
    session = session_over(bundles(family), slots=4)
    prompt = np.arange(20, dtype=np.int64)
    expected = complete_alone(session, 0, prompt, 6, 16)

    for start in (0, 16):
        logits = session.prefill(3, prompt[start : start + 16], start)
    session.place(3, int(logits[0].argmax()), 20)
    session.decode_row(3)
    session.move(3, 1)
    got = session.decode_row(1)[0]

    assert got.tobytes() == expected[1].tobytes()


def test_reading_a_prompt_touches_no_other_row(bundles, session_over):
    session = session_over(bundles(), slots=3)
    before = {}
    for name, tensor in session.cache.tensors.items():
        tensor[:] = 7
        before[name] = tensor.copy()

    session.prefill(1, np.arange(10, dtype=np.int64), 0)

    for name, tensor in session.cache.tensors.items():
        assert (tensor[[0, 2]] == before[name][[0, 2]]).all()
        assert (tensor[1, :, :10] != 7).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_together_give_the_same_bits_as_alone(family, bundles, session_over):
    session = session_over(bundles(family), slots=5)
    prompts = [np.arange(n, dtype=np.int64) * 11 % 60 for n in (9, 1, 30, 2)]
    alone = []
    for prompt in prompts:
        logits = session.prefill(0, prompt, 0)
        session.place(0, 7, len(prompt))
        alone.append((logits.tobytes(), session.decode_row(0).tobytes()))

    logits = session.prefill_together(1, prompts).copy()

    for row, (prompt, (first, second)) in enumerate(zip(prompts, alone, strict=True)):
        session.place(row + 1, 7, len(prompt))
        assert logits[row].tobytes() == first
        assert session.decode_row(row + 1).tobytes() == second


@pytest.mark.parametrize("family", FAMILIES)
def test_however_a_prompt_is_cut_its_logits_and_its_cache_have_the_same_bits(family, bundles, session_over):
    session = session_over(bundles(family), slots=2)
    prompt = np.arange(70, dtype=np.int64) * 7 % 60
    whole = session.prefill(0, prompt, 0).tobytes()
    # Kernels work on tiles: of 32 tokens here, so that 33 would leave one alone.
    for cuts in ([33], [1], [37], [69], [16, 32, 48, 64], [5, 38, 39], [65]):
        for start, end in zip([0, *cuts], [*cuts, 70], strict=True):
            logits = session.prefill(1, prompt[start:end], start)
        assert logits.tobytes() == whole
        for tensor in session.cache.tensors.values():
            assert tensor[0, :, :70].tobytes() == tensor[1, :, :70].tobytes()
