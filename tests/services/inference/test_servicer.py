import asyncio
import re
from contextlib import suppress

import pytest
import pytest_asyncio

from octavo.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    DetokenizeRequest,
    FinishReason,
    GenerateRequest,
    GenerationParameters,
    GetServedModelRequest,
    ListServedModelsRequest,
    ScoreInput,
    ScoreRequest,
    ServedModelState,
    StreamGenerateRequest,
    TextInput,
    TokenizeRequest,
    TokenSequence,
)

MODEL = "deployments/poet"
FORM = "parameters.structured_output"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def poet(open_suite, bundles, tmp_path_factory):
    """A suite that serves a random model as deployments/poet, for all tests of this file."""
    async with open_suite(tmp_path_factory.mktemp("suite")) as suite:
        await suite.deploy(await suite.publish(bundles()))
        yield suite


def asked(**parameters):
    return {"model": MODEL, "prompt": "TO BE", "parameters": GenerationParameters(**parameters)}


async def streamed(suite, **fields):
    events = [event async for event in suite.inference.StreamGenerate(StreamGenerateRequest(**fields))]
    return events[:-1], events[-1].done


async def test_a_completion_tells_text_tokens_usage_reason_and_the_version(poet):
    reply = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=12, seed=7, ignore_eos=True)))
    (completion,) = reply.completions
    assert len(completion.token_ids) == 12
    assert completion.finish_reason == FinishReason.FINISH_REASON_MAX_TOKENS
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 12)
    assert reply.version == "models/poet/versions/1"
    assert reply.seed == 7
    assert 0 < reply.timings.first_token_duration.ToNanoseconds() <= reply.timings.total_duration.ToNanoseconds()


async def test_a_stream_says_the_same_as_a_completion(poet):
    fields = asked(max_tokens=60, seed=7, ignore_eos=True)
    reply = await poet.inference.Generate(GenerateRequest(**fields))
    chunks, done = await streamed(poet, **fields)
    assert "".join(event.chunk.text for event in chunks) == reply.completions[0].text
    token_ids = [token_id for event in chunks for token_id in event.chunk.token_ids]
    assert token_ids == list(reply.completions[0].token_ids)
    assert done.ends[0].finish_reason == FinishReason.FINISH_REASON_MAX_TOKENS
    assert done.usage == reply.usage
    assert done.version == reply.version


async def test_without_a_seed_the_server_draws_one_that_repeats_the_text(poet):
    first = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=20)))
    other = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=20)))
    again = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=20, seed=first.seed)))
    assert again.completions[0].text == first.completions[0].text
    assert other.seed != first.seed


async def test_a_prompt_may_come_as_tokens(poet):
    ids = (await poet.inference.Tokenize(TokenizeRequest(model=MODEL, text="TO BE"))).token_ids
    fields = asked(max_tokens=8, seed=1)
    by_text = await poet.inference.Generate(GenerateRequest(**fields))
    by_ids = await poet.inference.Generate(GenerateRequest(**fields | {"prompt": "", "prompt_token_ids": ids}))
    assert by_ids.completions == by_text.completions


async def test_tokens_and_their_places_are_told_and_join_to_the_text(poet):
    text = "TO BE, OR NOT\n"
    reply = await poet.inference.Tokenize(TokenizeRequest(model="models/poet", text=text))
    assert list(reply.tokens) == list(text)
    assert list(reply.offsets) == list(range(len(text)))
    assert reply.context_length == 96
    back = await poet.inference.Detokenize(DetokenizeRequest(model=MODEL, token_ids=reply.token_ids))
    assert back.text == text


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "ÄB"}, "prompt", "'Ä' at 0"),
        ({"prompt": "A" * 96}, "prompt", "96 tokens leave no room in the context of 96; send at most 95"),
        ({"prompt": "", "prompt_token_ids": [1, 99]}, "prompt_token_ids[1]", "99 is not a token; ids go from 0 to 65"),
        ({"prompt_token_ids": [1]}, "prompt", "both are set"),
        ({"model": "poet"}, "model", "deployments/NAME"),
        ({"model": ""}, "model", "deployments/NAME"),
        ({"priority": 1000}, "priority", "between -100 and 100"),
        ({"parameters": {"temperature": -1}}, "parameters.temperature", "0 (most probable token) to 100"),
        ({"parameters": {"temperature": float("nan")}}, "parameters.temperature", "nan is not"),
        ({"parameters": {"top_p": 0}}, "parameters.top_p", "above 0"),
        ({"parameters": {"top_p": 1.5}}, "parameters.top_p", "at most 1"),
        ({"parameters": {"top_k": -1}}, "parameters.top_k", "0 (all tokens) or more"),
        ({"parameters": {"min_p": 2}}, "parameters.min_p", "0 (all tokens) to 1"),
        ({"parameters": {"max_tokens": 0}}, "parameters.max_tokens", "1 or more"),
        ({"parameters": {"repetition_penalty": 0}}, "parameters.repetition_penalty", "above 0"),
        ({"parameters": {"presence_penalty": 3}}, "parameters.presence_penalty", "-2 to 2"),
        ({"parameters": {"n": 17}}, "parameters.n", "1 to 16"),
        ({"parameters": {"logprobs": 21}}, "parameters.logprobs", "0 to 20"),
        ({"parameters": {"logit_bias": {3: 101}}}, "parameters.logit_bias[3]", "between -100 and 100"),
        ({"parameters": {"logit_bias": {99: 1}}}, "parameters.logit_bias[0]", "99 is not a token"),
        ({"parameters": {"stop": [""]}}, "parameters.stop[0]", "1 to 256"),
        ({"parameters": {"stop": ["x"] * 17}}, "parameters.stop", "more than 16"),
        ({"parameters": {"stop_token_ids": [-3]}}, "parameters.stop_token_ids[0]", "ids go from 0"),
        ({"parameters": {"min_tokens": -1}}, "parameters.min_tokens", "0 (none) or more"),
        ({"parameters": {"min_tokens": 5, "max_tokens": 4}}, "parameters.min_tokens", "above max_tokens, 4"),
        ({"parameters": {"min_tokens": 92}}, "parameters.min_tokens", "has room for 91"),
        ({"parameters": {"best_of": 17}}, "parameters.best_of", "1 to 16"),
        ({"parameters": {"best_of": 2, "n": 3}}, "parameters.best_of", "send 3 or more"),
        ({"parameters": {"structured_output": {}}}, "parameters.structured_output", "one of json_schema, regex"),
        (
            {"parameters": {"structured_output": {"regex": "A"}, "min_tokens": 2}},
            "parameters.min_tokens",
            "says where a text may end",
        ),
        ({"parameters": {"structured_output": {"regex": "(A"}}}, f"{FORM}.regex", "unclosed group"),
        ({"parameters": {"structured_output": {"regex": "a+"}}}, f"{FORM}.regex", "use the symbols that it has"),
        ({"parameters": {"structured_output": {"regex": "A" * 140_000}}}, f"{FORM}.regex", "more than 131072"),
        ({"parameters": {"structured_output": {"json_schema": "{"}}}, f"{FORM}.json_schema", "is not JSON"),
        (
            {"parameters": {"structured_output": {"json_schema": '{"type": "integer", "minimum": 2, "maximum": 1}'}}},
            f"{FORM}.json_schema",
            "minimum (2) is greater than maximum (1)",
        ),
        (
            {"parameters": {"structured_output": {"json_schema": '{"type": "object"}'}}},
            f"{FORM}.json_schema",
            "use the symbols that it has",
        ),
        ({"parameters": {"structured_output": {"grammar": "root = 1"}}}, f"{FORM}.grammar", "Expected ::="),
        ({"parameters": {"structured_output": {"choices": {}}}}, f"{FORM}.choices.texts", "send 1 to 1024"),
        ({"parameters": {"structured_output": {"choices": {"texts": ["A", ""]}}}}, f"{FORM}.choices.texts[1]", "empty"),
        (
            {"parameters": {"structured_output": {"regex": "AB+"}, "logit_bias": {34: -100}}},
            "parameters.logit_bias",
            "forbids every token",
        ),
        (
            {"parameters": {"structured_output": {"regex": "AB+"}, "stop_token_ids": [34]}},
            "parameters.stop_token_ids",
            "has every token",
        ),
        (
            {"parameters": {"structured_output": {"choices": {"texts": ["A B", "B"]}}, "stop": ["B"]}},
            "parameters.stop[0]",
            "would cut each short",
        ),
    ],
)
async def test_bad_input_is_answered_with_the_field_and_what_would_be_right(poet, fields, field, says):
    given = asked() | fields
    with pytest.raises(InvalidArgument) as caught:
        await poet.inference.Generate(GenerateRequest(**given))
    assert says in caught.value.violations[field]
    with pytest.raises(InvalidArgument) as streaming:
        await streamed(poet, **given)
    assert streaming.value.violations == caught.value.violations


async def test_all_wrong_fields_are_told_at_once(poet):
    with pytest.raises(InvalidArgument) as caught:
        await poet.inference.Generate(GenerateRequest(**asked(temperature=-1, top_p=2, max_tokens=-5)))
    assert set(caught.value.violations) == {"parameters.temperature", "parameters.top_p", "parameters.max_tokens"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("deployments/nobody", Reason.REASON_MODEL_NOT_SERVED),
        ("models/nobody", Reason.REASON_MODEL_NOT_FOUND),
        ("models/poet/versions/9", Reason.REASON_VERSION_NOT_FOUND),
        ("models/poet@champion", Reason.REASON_ALIAS_NOT_FOUND),
    ],
)
async def test_an_unknown_name_is_not_found(poet, model, reason):
    with pytest.raises(NotFound) as caught:
        await poet.inference.Generate(GenerateRequest(**asked() | {"model": model}))
    assert caught.value.reason == reason


async def test_a_version_that_no_deployment_serves_says_so(poet, bundles):
    other = await poet.publish(bundles(), "other")
    with pytest.raises(FailedPrecondition, match="no deployment serves") as caught:
        await poet.inference.Generate(GenerateRequest(**asked() | {"model": other}))
    assert caught.value.reason == Reason.REASON_MODEL_NOT_SERVED


async def test_served_models_are_listed_and_got(poet):
    listed = await poet.inference.ListServedModels(ListServedModelsRequest())
    assert listed.total_size == 1
    (served,) = listed.served_models
    assert served.name == "servedModels/poet.1.fp32"
    assert served.state == ServedModelState.SERVED_MODEL_STATE_READY
    assert list(served.deployments) == [MODEL]
    assert (served.context_length, served.slot_count, served.conformance_count) == (96, 4, 2)
    again = await poet.inference.GetServedModel(GetServedModelRequest(name=served.name))
    for rate in ("prompt_tokens_per_second", "completion_tokens_per_second", "longest_wait_duration"):
        again.ClearField(rate)  # they fall as time passes
        served.ClearField(rate)
    assert again == served
    with pytest.raises(NotFound):
        await poet.inference.GetServedModel(GetServedModelRequest(name="servedModels/poet.7.fp32"))
    with pytest.raises(InvalidArgument):
        await poet.inference.ListServedModels(ListServedModelsRequest(page_size=-1))


async def test_a_served_model_tells_what_it_holds_and_what_it_has_done(poet):
    (before,) = (await poet.inference.ListServedModels(ListServedModelsRequest())).served_models
    assert 100_000 < before.weights_size_bytes < before.memory_size_bytes - before.cache_size_bytes
    assert not before.on_demand
    await poet.inference.Generate(GenerateRequest(**asked(max_tokens=5, ignore_eos=True)))
    (after,) = (await poet.inference.ListServedModels(ListServedModelsRequest())).served_models
    assert after.completion_token_count == before.completion_token_count + 5
    assert after.prompt_token_count + after.cached_token_count >= before.prompt_token_count + 5
    assert after.request_count == before.request_count + 1
    assert after.failed_request_count == before.failed_request_count
    assert after.last_request_time.seconds >= after.ready_time.seconds
    assert not after.HasField("longest_wait_duration")


async def test_required_fields_are_asked_for(poet):
    for call, request, field in (
        (poet.inference.Tokenize, TokenizeRequest(model=MODEL), "text"),
        (poet.inference.Detokenize, DetokenizeRequest(model=MODEL), "token_ids"),
        (poet.inference.GetServedModel, GetServedModelRequest(), "name"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await call(request)
        assert field in caught.value.violations


async def test_a_list_goes_on_behind_its_page(poet):
    page = await poet.inference.ListServedModels(ListServedModelsRequest(page_size=1))
    assert (len(page.served_models), page.next_page_token) == (1, "")
    rest = await poet.inference.ListServedModels(ListServedModelsRequest(page_token=page.served_models[0].name))
    assert (list(rest.served_models), rest.total_size) == ([], 1)
    with pytest.raises(InvalidArgument):
        await poet.inference.ListServedModels(ListServedModelsRequest(page_token="x"))


async def running_count(suite):
    listed = await suite.inference.ListServedModels(ListServedModelsRequest())
    return sum(served.running_count + served.waiting_count for served in listed.served_models)


async def emptied(suite):
    async with asyncio.timeout(5):
        while await running_count(suite):
            await asyncio.sleep(0.005)


async def test_leaving_a_stream_frees_its_slot(poet):
    stream = poet.inference.StreamGenerate(StreamGenerateRequest(**asked(ignore_eos=True)))
    async for _ in stream:
        break
    await stream.aclose()
    await emptied(poet)


async def test_cancelling_a_completion_frees_its_slot(poet):
    call = asyncio.create_task(poet.inference.Generate(GenerateRequest(**asked(ignore_eos=True))))
    await asyncio.sleep(0.002)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await emptied(poet)


async def test_a_full_queue_refuses_before_it_looks_at_a_prompt(open_suite, bundles, tmp_path):
    async with open_suite(tmp_path, slots=1, waiting_limit=1) as suite:
        await suite.deploy(await suite.publish(bundles()))

        async def insist():
            while True:
                with suppress(ResourceExhausted):
                    await suite.inference.Generate(GenerateRequest(**asked(ignore_eos=True)))

        crowd = [asyncio.create_task(insist()) for _ in range(4)]
        too_long = GenerateRequest(**(asked() | {"prompt": "A" * 1000}))
        error = None
        async with asyncio.timeout(20):
            while not isinstance(error, ResourceExhausted):
                with pytest.raises((ResourceExhausted, InvalidArgument)) as caught:
                    await suite.inference.Generate(too_long)
                error = caught.value
        for caller in crowd:
            caller.cancel()
        assert error.retry_after_s > 0


async def test_a_deadline_is_honoured(poet):
    with pytest.raises(DeadlineExceeded):
        await poet.inference.Generate(GenerateRequest(**asked(ignore_eos=True)), timeout=0.0005)
    await emptied(poet)


async def test_many_callers_at_once_each_get_what_they_get_alone(poet):
    async def complete(seed):
        reply = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=30, seed=seed, ignore_eos=True)))
        return reply.completions[0].text

    alone = [await complete(seed) for seed in range(24)]
    assert await asyncio.gather(*map(complete, range(24))) == alone


async def test_log_probabilities_are_those_of_the_unbent_model(poet):
    fields = asked(max_tokens=10, seed=3, ignore_eos=True, logprobs=2, prompt_logprobs=1, temperature=0.5)
    reply = await poet.inference.Generate(GenerateRequest(**fields))
    (completion,) = reply.completions
    assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
    score = await poet.inference.Score(
        ScoreRequest(
            model=MODEL,
            inputs=[
                ScoreInput(
                    context=TextInput(text="TO BE"),
                    continuation=TextInput(tokens=TokenSequence(token_ids=completion.token_ids)),
                )
            ],
            top_logprobs=2,
        )
    )
    told = [entry.logprob for entry in completion.logprobs]
    assert told == pytest.approx([entry.logprob for entry in score.scores[0].tokens], abs=1e-4)
    assert [entry.token for entry in reply.prompt_logprobs] == list("TO BE")
    assert not reply.prompt_logprobs[0].HasField("logprob")
    chunks, _ = await streamed(
        poet,
        **fields
        | {"parameters": GenerationParameters(max_tokens=10, seed=3, ignore_eos=True, logprobs=2, temperature=0.5)},
    )
    assert [entry for event in chunks for entry in event.chunk.logprobs] == list(completion.logprobs)


async def test_several_completions_of_one_prompt_have_streams_of_their_own(poet):
    fields = asked(max_tokens=15, seed=3, ignore_eos=True, n=3)
    reply = await poet.inference.Generate(GenerateRequest(**fields))
    texts = [completion.text for completion in reply.completions]
    assert [completion.index for completion in reply.completions] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 45)
    alone = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=15, seed=3, ignore_eos=True)))
    assert alone.completions[0].text == texts[0]
    chunks, done = await streamed(poet, **fields)
    for index, text in enumerate(texts):
        assert "".join(event.chunk.text for event in chunks if event.chunk.index == index) == text
    assert [end.index for end in done.ends] == [0, 1, 2]


async def test_echo_puts_the_prompt_in_front(poet):
    fields = asked(max_tokens=5, seed=3)
    plain = await poet.inference.Generate(GenerateRequest(**fields))
    echoed = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=5, seed=3, echo=True)))
    assert echoed.completions[0].text == "TO BE" + plain.completions[0].text
    chunks, _ = await streamed(poet, **asked(max_tokens=5, seed=3, echo=True))
    assert "".join(event.chunk.text for event in chunks) == echoed.completions[0].text


async def test_a_bias_forbids_and_forces_tokens(poet):
    forced = await poet.inference.Generate(GenerateRequest(**asked(max_tokens=5, logit_bias={7: 100})))
    assert list(forced.completions[0].token_ids) == [7] * 5
    forbidden = await poet.inference.Generate(
        GenerateRequest(**asked(max_tokens=40, temperature=0, logit_bias=dict.fromkeys(range(60), -100)))
    )
    assert min(forbidden.completions[0].token_ids) >= 60


async def test_a_repetition_penalty_makes_greedy_text_repeat_less(poet):
    async def distinct(**parameters):
        fields = asked(max_tokens=60, temperature=0, ignore_eos=True, **parameters)
        return len(set((await poet.inference.Generate(GenerateRequest(**fields))).completions[0].token_ids))

    plain = await distinct()
    assert await distinct(repetition_penalty=5) > plain
    assert await distinct(frequency_penalty=2, presence_penalty=2) > plain


async def test_prompt_log_probabilities_lead_a_stream_once_for_all_completions(poet):
    fields = asked(max_tokens=4, seed=3, ignore_eos=True, n=2, prompt_logprobs=2, echo=True)
    reply = await poet.inference.Generate(GenerateRequest(**fields))
    events, _ = await streamed(poet, **fields)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.count("prompt") == 1
    assert kinds[0] == "prompt"
    assert list(events[0].prompt.tokens) == list(reply.prompt_logprobs)
    score = await poet.inference.Score(
        ScoreRequest(model=MODEL, inputs=[ScoreInput(continuation=TextInput(text="TO BE"))], top_logprobs=2)
    )
    assert list(reply.prompt_logprobs) == list(score.scores[0].tokens)
    assert [completion.text[:5] for completion in reply.completions] == ["TO BE"] * 2


async def test_no_end_comes_before_the_least_number_of_tokens(poet):
    ended = asked(max_tokens=40, temperature=0, logit_bias={65: 100})
    assert len((await poet.inference.Generate(GenerateRequest(**ended))).completions[0].token_ids) == 1
    ended["parameters"].min_tokens = 7
    (completion,) = (await poet.inference.Generate(GenerateRequest(**ended))).completions
    assert len(completion.token_ids) == 8
    assert completion.finish_reason == FinishReason.FINISH_REASON_END_OF_TEXT
    assert 65 not in completion.token_ids[:7]


@pytest.mark.parametrize("field", ["stop", "stop_token_ids"])
async def test_no_stop_counts_before_the_least_number_of_tokens(poet, field):
    stops = [chr(code) for code in range(32, 96)] if field == "stop" else list(range(64))
    free = {field: stops[:16], "max_tokens": 40, "seed": 2, "ignore_eos": True}
    (early,) = (await poet.inference.Generate(GenerateRequest(**asked(**free)))).completions
    (late,) = (await poet.inference.Generate(GenerateRequest(**asked(**free, min_tokens=20)))).completions
    assert len(early.token_ids) < 20 <= len(late.token_ids)


async def test_the_best_of_several_completions_are_those_of_the_most_probable_tokens(poet):
    fields = {"max_tokens": 12, "seed": 5, "ignore_eos": True}
    every = await poet.inference.Generate(GenerateRequest(**asked(**fields, n=6, logprobs=0)))
    best = await poet.inference.Generate(GenerateRequest(**asked(**fields, n=2, best_of=6)))

    def mean(completion):
        return sum(entry.logprob for entry in completion.logprobs) / len(completion.logprobs)

    ranked = sorted(every.completions, key=mean, reverse=True)
    assert [completion.text for completion in best.completions] == [completion.text for completion in ranked[:2]]
    assert [completion.index for completion in best.completions] == [0, 1]
    assert not best.completions[0].logprobs
    assert best.usage.completion_tokens == 72


async def test_a_stream_cannot_choose_the_best(poet):
    with pytest.raises(InvalidArgument, match="call Generate"):
        await streamed(poet, **asked(best_of=2))
    chunks, _ = await streamed(poet, **asked(n=2, best_of=2, max_tokens=1))
    assert not any(event.chunk.logprobs for event in chunks)


async def test_a_form_holds_in_streams_with_several_completions_and_their_scores(poet):
    fields = asked(
        seed=4, n=3, logprobs=1, repetition_penalty=1.3, structured_output={"regex": "[A-F]{3}-(YES|NO|[0-9]{2,4})"}
    )
    reply = await poet.inference.Generate(GenerateRequest(**fields))
    for completion in reply.completions:
        assert re.fullmatch("[A-F]{3}-(YES|NO|[0-9]{2,4})", completion.text)
        assert completion.finish_reason in (
            FinishReason.FINISH_REASON_FORM_COMPLETE,
            FinishReason.FINISH_REASON_END_OF_TEXT,
        )
        assert len(completion.logprobs) == len(completion.token_ids)
    chunks, done = await streamed(poet, **fields)
    for completion in reply.completions:
        text = "".join(event.chunk.text for event in chunks if event.chunk.index == completion.index)
        assert text == completion.text
    assert [end.finish_reason for end in done.ends] == [c.finish_reason for c in reply.completions]


async def test_a_form_that_breaks_on_the_way_ends_its_own_request_alone(poet):
    # The vocabulary has no small letters, and no step but the last shows it.
    broken = asked(ignore_eos=True, structured_output={"grammar": 'root ::= [A-Z]{40} ("B" "a" | "C" "a")'})
    free = GenerateRequest(**asked(max_tokens=60, seed=8, ignore_eos=True))
    alone = await poet.inference.Generate(free)
    failed, *others = await asyncio.gather(
        poet.inference.Generate(GenerateRequest(**broken)),
        *[poet.inference.Generate(free) for _ in range(3)],
        return_exceptions=True,
    )
    assert isinstance(failed, InvalidArgument)
    assert "cannot" in failed.violations[next(iter(failed.violations))]
    assert [reply.completions for reply in others] == [alone.completions] * 3
    await emptied(poet)
