import asyncio
import logging

from octavo.errors import InvalidArgument
from octavo.open_inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from services.inference.infer_stream import STREAM_LIMIT, InferStream

LOGGER = logging.getLogger("octavo.test")


async def sent(*ids):
    for tag in ids:
        yield ModelInferRequest(id=tag)


async def test_answers_come_as_they_are_ready_and_an_error_is_told_by_the_id_of_its_request():
    async def answers(request):
        if request.id == "bad":
            raise InvalidArgument.field("inputs", "are not right")
        if request.id == "worse":
            raise ZeroDivisionError
        for _ in range(2):
            await asyncio.sleep(0)
            yield ModelInferResponse(id=request.id)

    got = [answer async for answer in InferStream(sent("a", "bad", "worse", "b"), answers, LOGGER)]
    good = [answer.infer_response.id for answer in got if not answer.error_message]
    assert sorted(good) == ["a", "a", "b", "b"]
    errors = {answer.infer_response.id: answer.error_message for answer in got if answer.error_message}
    assert set(errors) == {"bad", "worse"}
    assert "are not right" in errors["bad"]
    assert "a defect of this server" in errors["worse"]


async def test_no_more_requests_are_under_way_than_may_be():
    under_way, most = 0, 0

    async def answers(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        yield ModelInferResponse(id=request.id)
        under_way -= 1

    ids = [str(number) for number in range(STREAM_LIMIT * 3)]
    got = [answer.infer_response.id async for answer in InferStream(sent(*ids), answers, LOGGER)]
    assert sorted(got) == sorted(ids)
    assert most <= STREAM_LIMIT


async def test_a_reader_that_leaves_while_answers_pile_up_leaves_nothing_running():
    async def endless(request):
        while True:
            yield ModelInferResponse(id=request.id)

    before = asyncio.all_tasks()
    answers = aiter(InferStream(sent("1"), endless, LOGGER))
    await anext(answers)
    await asyncio.sleep(0.05)  # more answers are there than are kept for a reader
    await answers.aclose()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)
