import asyncio
import math
import random
import threading
import time

import numpy as np
import pytest
import pytest_asyncio

from octavo.errors import DeadlineExceeded, InvalidArgument
from octavo.formats.conformance import Conformance
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.inference_pb2 import (
    EmbedRequest,
    GenerateRequest,
    GenerationParameters,
    Pooling,
    ScoreInput,
    ScoreRequest,
    TextInput,
    TokenizeRequest,
    TokenSequence,
)
from services.inference.score_session import ScoreSession

MODEL = "deployments/poet"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def poet(open_suite, bundles, tmp_path_factory):
    async with open_suite(tmp_path_factory.mktemp("suite")) as suite:
        await suite.deploy(await suite.publish(bundles("qwen3")))
        yield suite


def tokens(*token_ids):
    return TextInput(tokens=TokenSequence(token_ids=token_ids))


def text(value):
    return TextInput(text=value)


async def scored(suite, *inputs, top=0):
    reply = await suite.inference.Score(ScoreRequest(model=MODEL, inputs=inputs, top_logprobs=top))
    return reply.scores


async def test_scores_are_what_the_exporter_measured(poet, bundles):
    for vector in Conformance.read(bundles("qwen3")).precisions["fp32"].vectors:
        (score,) = await scored(
            poet, ScoreInput(context=tokens(*vector.prompt), continuation=tokens(*vector.greedy)), top=3
        )
        found = [entry.logprob for entry in score.tokens]
        assert found == pytest.approx(vector.log_probabilities, abs=1e-4)
        assert score.is_greedy
        assert [entry.top_logprobs[0].token_id for entry in score.tokens] == list(vector.greedy)
        assert score.total_logprob == pytest.approx(sum(found))
        assert score.perplexity == pytest.approx(math.exp(-sum(found) / len(found)))


async def test_texts_become_tokens_beside_the_event_loop(poet, monkeypatch):
    threads, encode = [], Tokenizer.encode

    def watched(tokenizer, value):
        threads.append(threading.current_thread())
        return encode(tokenizer, value)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    await scored(poet, ScoreInput(context=text("TO"), continuation=text(" BE")))
    await poet.inference.Embed(EmbedRequest(model=MODEL, inputs=[text("TO BE")]))
    await poet.inference.Tokenize(TokenizeRequest(model=MODEL, text="A" * 5000))
    assert len(threads) >= 4
    assert threading.main_thread() not in threads


async def test_a_text_without_context_has_no_log_probability_for_its_first_token(poet):
    (score,) = await scored(poet, ScoreInput(continuation=text("TO BE")))
    assert [entry.token for entry in score.tokens] == list("TO BE")
    assert [entry.HasField("logprob") for entry in score.tokens] == [False, True, True, True, True]
    (single,) = await scored(poet, ScoreInput(continuation=text("T")))
    assert (len(single.tokens), single.perplexity) == (1, 1.0)


async def test_context_and_continuation_score_as_the_whole_does(poet):
    whole = "TO BE, OR NOT TO BE"
    (all_of_it,) = await scored(poet, ScoreInput(continuation=text(whole)))
    (rest,) = await scored(poet, ScoreInput(context=text(whole[:7]), continuation=text(whole[7:])))
    assert list(rest.tokens) == list(all_of_it.tokens[7:])


async def test_probabilities_of_all_tokens_sum_to_one(poet):
    (score,) = await scored(poet, ScoreInput(continuation=text("TO")), top=20)
    tops = [entry.logprob for entry in score.tokens[1].top_logprobs]
    assert tops == sorted(tops, reverse=True)
    assert len(tops) == 20
    assert 0 < sum(map(math.exp, tops)) <= 1


async def test_scoring_changes_no_generation(poet):
    request = GenerateRequest(
        model=MODEL, prompt="TO BE", parameters=GenerationParameters(max_tokens=20, seed=4, ignore_eos=True)
    )
    before = await poet.inference.Generate(request)
    await scored(poet, *[ScoreInput(continuation=text("A" * 90))] * 4)
    assert (await poet.inference.Generate(request)).completions == before.completions


async def embedded(suite, *inputs, **fields):
    reply = await suite.inference.Embed(EmbedRequest(model=MODEL, inputs=inputs, **fields))
    return [np.array(entry.values) for entry in reply.embeddings]


async def test_a_vector_is_of_length_one_and_the_same_for_text_and_tokens(poet):
    vectors = await embedded(poet, text("TO BE"), tokens(*range(40)))
    assert [len(vector) for vector in vectors] == [32, 32]
    assert [float(np.linalg.norm(vector)) for vector in vectors] == pytest.approx([1, 1], abs=1e-6)
    again = await embedded(poet, tokens(*range(40)))
    assert (again[0] == vectors[1]).all()


async def test_pooling_dimensions_and_scale_can_be_chosen(poet):
    (mean,) = await embedded(poet, text("TO BE"), normalize=False)
    (last,) = await embedded(poet, text("TO BE"), normalize=False, pooling=Pooling.POOLING_LAST)
    (short,) = await embedded(poet, text("TO BE"), normalize=False, dimensions=8)
    assert not np.allclose(mean, last)
    assert (short == mean[:8]).all()
    (single,) = await embedded(poet, text("T"), normalize=False)
    (single_last,) = await embedded(poet, text("T"), normalize=False, pooling=Pooling.POOLING_LAST)
    assert (single == single_last).all()


@pytest.mark.parametrize(
    ("inputs", "field", "says"),
    [
        ([], "inputs", "send 1 to 256"),
        ([TextInput(text="A")] * 257, "inputs", "send 1 to 256"),
        ([TextInput(text="A"), TextInput()], "inputs[1]", "empty"),
        ([TextInput(text="ä")], "inputs[0].text", "not in the vocabulary"),
        ([TextInput(text="A" * 97)], "inputs[0]", "97 tokens do not fit into the context of 96"),
    ],
)
async def test_wrong_texts_are_named(poet, inputs, field, says):
    with pytest.raises(InvalidArgument) as caught:
        await poet.inference.Embed(EmbedRequest(model=MODEL, inputs=inputs))
    assert says in caught.value.violations[field]


@pytest.mark.parametrize(
    ("inputs", "field", "says"),
    [
        ([], "inputs", "send 1 to 256"),
        ([ScoreInput(context=text("A"))], "inputs[0].continuation", "empty"),
        ([ScoreInput(continuation=text(""))], "inputs[0].continuation", "empty"),
        ([ScoreInput(context=text("ä"), continuation=text("A"))], "inputs[0].context.text", "'ä' at 0"),
        (
            [ScoreInput(continuation=tokens(1)), ScoreInput(continuation=tokens(1, 66))],
            "inputs[1].continuation.tokens.token_ids[1]",
            "ids go from 0 to 65",
        ),
        ([ScoreInput(context=text("A" * 90), continuation=text("B" * 7))], "inputs[0]", "97 tokens do not fit"),
    ],
)
async def test_wrong_texts_to_score_are_named(poet, inputs, field, says):
    with pytest.raises(InvalidArgument) as caught:
        await scored(poet, *inputs)
    assert says in caught.value.violations[field]


@pytest.mark.parametrize("fields", [{"dimensions": 0}, {"dimensions": 33}])
async def test_impossible_dimensions_are_refused(poet, fields):
    with pytest.raises(InvalidArgument, match="between 1 and the model's 32"):
        await poet.inference.Embed(EmbedRequest(model=MODEL, inputs=[text("A")], **fields))


async def test_too_many_best_tokens_are_refused(poet):
    with pytest.raises(InvalidArgument, match="between 0 and 20"):
        await scored(poet, ScoreInput(continuation=text("A")), top=21)


async def test_a_text_scores_the_same_alone_and_with_any_others(poet):
    dice = random.Random(1)
    inputs = []
    for _ in range(60):
        context = tokens(*dice.choices(range(66), k=dice.randrange(1, 30))) if dice.random() < 0.5 else None
        continuation = tokens(*dice.choices(range(66), k=dice.choice((1, 2, 5, 8, 9, 15, 16, 17, 40, 66))))
        inputs.append(ScoreInput(context=context, continuation=continuation))
    alone = [(await scored(poet, given, top=2))[0] for given in inputs]
    assert list(await scored(poet, *inputs, top=2)) == alone
    order = dice.sample(range(60), 60)
    assert list(await scored(poet, *[inputs[number] for number in order], top=2)) == [alone[n] for n in order]


async def test_a_text_embeds_the_same_alone_and_with_any_others(poet):
    dice = random.Random(2)
    texts = [tokens(*dice.choices(range(66), k=dice.choice((1, 3, 8, 9, 16, 17, 50)))) for _ in range(40)]
    for pooling in (Pooling.POOLING_MEAN, Pooling.POOLING_LAST):
        alone = [(await embedded(poet, given, pooling=pooling))[0] for given in texts]
        together = await embedded(poet, *texts, pooling=pooling)
        assert all((one == other).all() for one, other in zip(alone, together, strict=True))


async def test_totals_are_those_of_all_tokens_that_have_a_log_probability(poet):
    inputs = [ScoreInput(continuation=text("TO BE")), ScoreInput(context=text("OR"), continuation=text(" NOT"))]
    reply = await poet.inference.Score(ScoreRequest(model=MODEL, inputs=inputs))
    nats = -sum(score.total_logprob for score in reply.scores)
    assert (reply.total.token_count, reply.total.size_bytes) == (8, 8)
    assert reply.total.total_logprob == pytest.approx(-nats)
    assert reply.total.perplexity == pytest.approx(math.exp(nats / 8))
    assert reply.total.bits_per_byte == pytest.approx(nats / math.log(2) / 8)
    assert reply.scores[1].bits_per_byte == pytest.approx(-reply.scores[1].total_logprob / math.log(2) / 4)


async def test_a_special_token_has_a_probability_but_no_bytes(poet):
    end = 65
    reply = await poet.inference.Score(ScoreRequest(model=MODEL, inputs=[ScoreInput(continuation=tokens(1, 2, end))]))
    assert (reply.total.token_count, reply.total.size_bytes) == (2, 1)
    only = await poet.inference.Score(ScoreRequest(model=MODEL, inputs=[ScoreInput(continuation=tokens(1, end))]))
    assert (only.total.size_bytes, only.total.bits_per_byte) == (0, 0)
    assert only.total.perplexity > 1


async def test_who_leaves_stops_the_work_at_the_next_run(poet, monkeypatch):
    runs, read = [], ScoreSession.read

    def slow(session, texts, firsts, left):
        for reading in read(session, texts, firsts, left):
            runs.append(left)
            time.sleep(0.05)
            yield reading

    monkeypatch.setattr(ScoreSession, "read", slow)
    request = ScoreRequest(model=MODEL, inputs=[ScoreInput(continuation=tokens(*range(60)))] * 100)
    with pytest.raises(DeadlineExceeded):
        await poet.inference.Score(request, timeout=0.2)
    call = asyncio.create_task(poet.inference.Score(request))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        while not all(left.is_set() for left in runs):
            await asyncio.sleep(0.01)
    # Whoever comes next waits for one run at most, not for the hundred texts of the others.
    async with asyncio.timeout(1):
        await scored(poet, ScoreInput(continuation=text("TO BE")))
    assert len(runs) < 40
