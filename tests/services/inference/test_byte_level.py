"""Requests to a model whose tokens are bytes and pairs of bytes: characters and stops straddle them."""

import json

import grpc
import jsonschema
import pytest
import pytest_asyncio

from octavo.client.channel import translated
from octavo.errors import InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    DetokenizeRequest,
    FinishReason,
    GenerateRequest,
    GenerationParameters,
    ScoreInput,
    ScoreRequest,
    StreamGenerateRequest,
    TextInput,
)

MODEL = "deployments/bytes"
TOKENIZER = Tokenizer.train_bpe(["to be or not to be, that is the question: ÄÖÜ 日本語 🙂 " * 20], vocab_size=330)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def served(open_suite, bundles, tmp_path_factory):
    async with open_suite(tmp_path_factory.mktemp("suite")) as suite:
        await suite.deploy(await suite.publish(bundles("qwen3", tokenizer=TOKENIZER)), deployment="bytes")
        yield suite


def asked(prompt="to be", **parameters):
    return {"model": MODEL, "prompt": prompt, "parameters": GenerationParameters(**parameters)}


async def completed(suite, **fields):
    return (await suite.inference.Generate(GenerateRequest(**fields))).completions[0]


async def streamed(suite, **fields):
    events = [event async for event in suite.inference.StreamGenerate(StreamGenerateRequest(**fields))]
    return [event.chunk.text for event in events[:-1]], events[-1].done.ends[0]


@pytest.mark.parametrize("seed", range(12))
async def test_stream_and_completion_and_decoded_tokens_are_one_text(served, seed):
    free = asked(max_tokens=60, seed=seed, ignore_eos=True, temperature=2)
    whole = await completed(served, **free)
    # A random model writes bytes that are no characters: they become the replacement character, alike everywhere.
    assert "\ufffd" in whole.text
    assert whole.text == TOKENIZER.decode(whole.token_ids, skip_special=True)
    pieces, _ = await streamed(served, **free)
    assert "".join(pieces) == whole.text

    stop = whole.text[len(whole.text) // 2 :][:3]
    free["parameters"].stop.append(stop)
    cut = await completed(served, **free)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop) == (FinishReason.FINISH_REASON_STOP_TEXT, stop)
    pieces, end = await streamed(served, **free)
    assert ("".join(pieces), end.stop) == (cut.text, stop)


async def test_half_a_character_is_a_prompt_like_any_other(served):
    half = TOKENIZER.encode("Ж")[:1]
    reply = await served.inference.Detokenize(DetokenizeRequest(model=MODEL, token_ids=half))
    assert reply.text == "\ufffd"
    fields = asked("", max_tokens=5, seed=1, echo=True) | {"prompt_token_ids": half}
    completion = await completed(served, **fields)
    assert completion.text.startswith("\ufffd")
    assert len(completion.token_ids) == 5


async def test_text_that_is_no_unicode_is_refused_before_it_reaches_a_model(served):
    request = GenerateRequest(**asked("??")).SerializeToString().replace(b"??", b"\xff\xfe")
    async with grpc.aio.insecure_channel(served.address) as channel:
        call = channel.unary_unary("/octavo.v1.Inference/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request)
    error = translated(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.reason == Reason.REASON_INVALID_BODY
    assert "texts are UTF-8" in error.message


async def test_json_holds_characters_of_every_length(served):
    schema = {"type": "object", "properties": {"wörter": {"enum": ["日本語", "🙂", "to be"]}, "n": {"type": "integer"}}}
    schema |= {"required": ["wörter", "n"], "additionalProperties": False}
    for seed in range(6):
        fields = asked(
            seed=seed, structured_output={"json_schema": json.dumps(schema)}, logit_bias={TOKENIZER.end_id: 9}
        )
        completion = await completed(served, **fields)
        assert completion.finish_reason == FinishReason.FINISH_REASON_FORM_COMPLETE
        jsonschema.validate(json.loads(completion.text), schema)


async def test_bits_are_counted_per_byte_not_per_character(served):
    inputs = [ScoreInput(context=TextInput(text="to"), continuation=TextInput(text="日本語🙂"))]
    reply = await served.inference.Score(ScoreRequest(model=MODEL, inputs=inputs))
    assert reply.total.size_bytes == 13
    assert reply.total.bits_per_byte == reply.scores[0].bits_per_byte > 0
