import asyncio
from threading import Thread

from services.inference.outbox import Courier, Delivery, Ending, Outbox

ENDING = Ending(arrival_s=0, start_s=0, first_token_s=0, end_s=0, token_count=0)


def in_a_thread(work):
    thread = Thread(target=work)
    thread.start()
    thread.join()


async def test_what_crosses_together_wakes_the_loop_once(monkeypatch):
    loop = asyncio.get_running_loop()
    wakes = []
    crossing = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: (wakes.append(call), crossing(*call)))
    outboxes = [Outbox(is_streaming=True) for _ in range(5)]
    courier = Courier(loop)

    def engine():
        for number, outbox in enumerate(outboxes):
            courier.hand(outbox, Delivery(str(number), [number]))
        courier.depart()
        courier.depart()

    takes = [asyncio.create_task(outbox.take()) for outbox in outboxes]
    await asyncio.sleep(0)
    in_a_thread(engine)
    deliveries = await asyncio.gather(*takes)
    assert [(delivery.text, delivery.token_ids) for delivery in deliveries] == [(str(n), [n]) for n in range(5)]
    assert len(wakes) == 1


async def test_what_comes_while_nobody_waits_travels_together():
    outbox = Outbox(is_streaming=True)
    outbox.deliver(Delivery("a", [1]))
    outbox.deliver(Delivery("b", [2], ending=ENDING))
    assert await outbox.take() == Delivery("ab", [1, 2], ending=ENDING)


async def test_only_a_reader_that_waits_for_chunks_is_hungry():
    courier = Courier(asyncio.get_running_loop())
    outbox = Outbox(is_streaming=True)
    assert outbox.is_hungry
    courier.hand(outbox, Delivery("a", [1]))
    assert not outbox.is_hungry
    courier.depart()
    await outbox.take()
    assert not outbox.is_hungry
    waiting = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    assert outbox.is_hungry
    waiting.cancel()
    assert not Outbox(is_streaming=False).is_hungry


async def test_a_delivery_to_a_reader_that_has_left_harms_nobody():
    outbox = Outbox(is_streaming=True)
    waiting = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    outbox.deliver(Delivery("late", [1], ending=ENDING))
