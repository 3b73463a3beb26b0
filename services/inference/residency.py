"""What is in memory: loads what is wanted, unloads what is not, and within the budget what is not needed just now.

A served model that everybody wants on demand only, or without traffic, leaves memory when another needs the room, the
least recently used one first, and comes back at its next request. One that somebody uses finishes that before. Runs on
the event loop; loading happens in threads.
"""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

from octavo.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    OctavoError,
    ResourceExhausted,
    Unavailable,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import ServedModelState
from services.inference.bundle_cache import BundleCache, Lease
from services.inference.catalog import Catalog
from services.inference.loader import Loader
from services.inference.memory import Heap
from services.inference.memory_budget import MemoryBudget, Reservation
from services.inference.roster import Roster
from services.inference.served_model import Key, LoadedModel, ServedModel
from services.inference.tensor_model import TensorModel

RETRY_S = 1.0
"""How long to wait before trying again what the registry or the disk did not give, in seconds."""
ROOM_INTERVAL_S = 0.05
"""How often it is looked whether memory has become free, in seconds."""
COLLECTIONS = 5
"""How often garbage is collected for a model that should be gone."""
HURRY_S = 0.5
"""How long who needs memory waits for others to be idle before they are asked to leave, in seconds."""
LOADS_AT_ONCE = 4
"""Models that are brought into memory at the same time: a large one does not hold up small ones."""


class Residency:
    """The served models of a roster, in memory and out of it. `changed` is told whenever one has come or gone."""

    def __init__(
        self,
        *,
        roster: Roster,
        catalog: Catalog,
        bundles: BundleCache,
        loader: Loader,
        budget: MemoryBudget,
        logger: logging.Logger,
        drain_s: float,
        keep_alive_s: float,
        patience_s: float,
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._roster = roster
        self._catalog = catalog
        self._bundles = bundles
        self._loader = loader
        self._budget = budget
        self._heap = Heap()
        self._logger = logger
        self._drain_s = drain_s
        self._keep_alive_s = keep_alive_s
        self._patience_s = patience_s
        self._leases: dict[ServedModel, Lease] = {}
        self._reservations: dict[ServedModel, Reservation] = {}
        self._loads: dict[ServedModel, asyncio.Task[None]] = {}
        self._outgoing: set[Reservation] = set()
        """Of models that are being stopped: free in a moment."""
        self._first: ServedModel | None = None
        """For whom others leave just now; `_spare_bytes` of what is coming are not for it."""
        self._spare_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Lock()
        self._turn = asyncio.Semaphore(LOADS_AT_ONCE)

    def start(self, key: Key) -> None:
        """Makes a served model of a version that the catalog knows, on its way into memory."""
        served = ServedModel(key)
        self._roster.models[key] = served
        self.wake(served)

    def wake(self, served: ServedModel) -> None:
        """Loads a served model, unless it is in memory or on its way there."""
        if served not in self._loads and served.loaded is None and not served.failure:
            task = self._spawn(self._load(served))
            self._loads[served] = task
            task.add_done_callback(lambda _: self._loads.pop(served, None))

    def drop(self, key: Key) -> None:
        """Lets a served model finish what it does, then forgets it and its files."""
        served = self._roster.models.pop(key)
        self._roster.draining.append(served)
        if (task := self._loads.get(served)) and served.state != ServedModelState.SERVED_MODEL_STATE_VERIFYING:
            task.cancel()  # in a thread it cannot be stopped: what that makes is dropped when it is there
        self._spawn(self._drain(served))

    async def reach(self, served: ServedModel) -> bool:
        """Whether a served model is ready, after it was loaded if need be; not where it failed or was dropped.

        Raises Unavailable when that takes longer than callers should wait.
        """
        if served.is_ready:
            return True
        self.wake(served)
        try:
            async with asyncio.timeout(self._patience_s):
                return await served.reached()
        except TimeoutError:
            raise Unavailable(
                Reason.REASON_MODEL_LOADING,
                f"{served.key.name} was not loaded within {self._patience_s:g} s; try again"
                + (f": {served.obstacle}" if served.obstacle else ""),
                retry_after_s=max(1.0, served.load_s),
            ) from None

    def look_after(self) -> bool:
        """Unloads whom nobody has asked for long, notes how fast all are; whether it had to replace an engine."""
        now_s, is_replaced = monotonic(), False
        for key, served in list(self._roster.models.items()):
            if not served.loaded:
                continue
            if isinstance(served.loaded, LoadedModel):
                meter = served.loaded.engine.meter
                served.pace.note(now_s, meter.prompt_tokens, meter.completion_tokens)
            if not served.loaded.is_alive:
                self._logger.error("the engine of %s is gone, loading it again", key.version)
                self.drop(key)
                self.start(key)
                is_replaced = True
            elif served.is_idle and self._is_stale(served, now_s):
                self._spawn(self._unload(served))
        return is_replaced

    def may_find_room(self) -> bool:
        """Whether somebody is on the way out of memory, or may leave it once nobody uses it."""
        reserved = (key for key, served in self._roster.models.items() if served in self._reservations)
        return bool(self._roster.draining) or any(self._roster.may_leave(key) for key in reserved)

    async def close(self) -> None:
        """Stops every engine; what they still do is cut off."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for served in (*self._roster.models.values(), *self._roster.draining):
            await served.drain(0)
            await self._dispose(served)
        for lease in self._leases.values():
            lease.close()

    async def _load(self, served: ServedModel) -> None:
        while self._is_wanted(served):
            try:
                await self._load_once(served)
                break
            except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
                self._logger.warning("cannot load %s, trying again: %s", served.key.version, error)
                served.wait(error)
                self.changed()
                await asyncio.sleep(RETRY_S)
            except OctavoError as error:
                self._logger.error("refused %s: %s", served.key.version, error)
                self._fail(served, error)
                break
            except Exception as error:
                self._logger.exception("cannot load %s", served.key.version)
                self._fail(served, Internal(Reason.REASON_INTERNAL, f"it cannot be loaded: {error}"))
                break
        self.changed()

    async def _load_once(self, served: ServedModel) -> None:
        served.move(ServedModelState.SERVED_MODEL_STATE_DOWNLOADING)
        directory = await self._fetch(served)
        served.footprint = await asyncio.to_thread(self._loader.footprint, directory, served.key)
        await self._reserve(served, served.footprint.total_bytes)
        try:
            async with self._turn:
                served.move(ServedModelState.SERVED_MODEL_STATE_VERIFYING)
                loaded = await asyncio.to_thread(self._load_apart, directory, served.key)
        except BaseException:
            self._release(served)
            raise
        served.ready(loaded)
        if not self._is_wanted(served):  # dropped meanwhile: it is draining already
            served.state = ServedModelState.SERVED_MODEL_STATE_DRAINING
            del loaded
            await self._dispose(served)
            return
        facts = {
            "version": served.key.version,
            "seconds": round(served.load_s, 3),
            "memory_bytes": served.footprint.total_bytes,
        }
        self._logger.info("ready", extra=facts)

    def _load_apart(self, directory: Path, key: Key) -> LoadedModel | TensorModel:
        with self._heap.apart():
            return self._loader.load(directory, key)

    async def _fetch(self, served: ServedModel) -> Path:
        """The directory of its files, verified now, and kept from whoever cleans up until it is dropped."""
        lease = await self._bundles.lease(self._catalog[served.key.version])
        if before := self._leases.pop(served, None):
            before.close()
        self._leases[served] = lease
        return lease.directory

    async def _reserve(self, served: ServedModel, size_bytes: int) -> None:
        """Waits until so much memory is kept for it. Raises FailedPrecondition where there never will be."""
        if size_bytes > self._budget.limit_bytes:
            raise FailedPrecondition(
                Reason.REASON_MEMORY_FULL,
                f"it takes {size_bytes} bytes of memory ({_parts(served)}), and all models together may take "
                f"{self._budget.limit_bytes}; raise OCTAVO_INFERENCE_MEMORY_LIMIT_BYTES, or lower "
                "OCTAVO_INFERENCE_SLOTS or OCTAVO_INFERENCE_CONTEXT_LIMIT",
            )
        begin_s = monotonic()
        try:
            while not (reservation := await self._find_room(served, size_bytes)):
                if monotonic() - begin_s > HURRY_S:
                    self._hurry(served, size_bytes)
                is_news = served.obstacle is None
                served.wait(self._no_room(served, size_bytes))
                if is_news:
                    self.changed()
                await asyncio.sleep(ROOM_INTERVAL_S)
            self._reservations[served] = reservation
        finally:
            self._first = None if self._first is served else self._first

    async def _find_room(self, entrant: ServedModel, size_bytes: int) -> Reservation | None:
        """A reservation, after unloading as many as it takes of those that may leave; none of them if it is in vain.

        Nobody takes what others leave for the one that has waited longest.
        """
        async with self._room:
            if self._first not in (None, entrant):
                reservation = self._budget.reserve(size_bytes) if size_bytes <= self._spare_bytes else None
                self._spare_bytes -= reservation.size_bytes if reservation else 0
                return reservation
            if reservation := self._budget.reserve(size_bytes):
                return reservation
            leaving, freed_bytes = [], self._budget.free_bytes
            for served in sorted(self._leavers(), key=lambda served: served.last_use_s):
                leaving.append(served)
                freed_bytes += self._reservations[served].size_bytes
                if freed_bytes >= size_bytes:
                    await asyncio.gather(*(asyncio.shield(self._spawn(self._unload(one))) for one in leaving))
                    return self._budget.reserve(size_bytes)
            return None

    def _hurry(self, entrant: ServedModel, size_bytes: int) -> None:
        """Asks as many as it takes of the busy ones that may leave to do so, longest in memory first.

        They finish what they do; requests for them wait until they come back. Those who wait have their turn so, one
        after another, even where others never pause.
        """
        held = [(served, self._reservations[served].size_bytes) for served in self._leavable()]
        coming_bytes = self._budget.free_bytes + sum(reservation.size_bytes for reservation in self._outgoing)
        if self._first not in (None, entrant):
            return
        if coming_bytes + sum(size for _, size in held) < size_bytes:
            self._first = None
            return
        self._first = entrant
        coming_bytes += sum(size for served, size in held if not served.is_ready)
        for served, size in sorted(held, key=lambda entry: entry[0].ready_s or 0):
            if coming_bytes < size_bytes and served.is_ready:
                coming_bytes += size
                self._spawn(self._let_go(served))
        self._spare_bytes = coming_bytes - size_bytes

    async def _let_go(self, served: ServedModel) -> None:
        await served.leave()
        await self._unload(served)

    def _leavers(self) -> list[ServedModel]:
        return [served for served in self._leavable() if served.is_idle]

    def _leavable(self) -> list[ServedModel]:
        """Those in memory that need not be there."""
        return [
            served
            for key, served in self._roster.models.items()
            if served.loaded and served in self._reservations and self._roster.may_leave(key)
        ]

    def _no_room(self, served: ServedModel, size_bytes: int) -> ResourceExhausted:
        holders = sorted(self._reservations.items(), key=lambda item: -item[1].size_bytes)
        shown = ", ".join(f"{holder.key.name} {reservation.size_bytes}" for holder, reservation in holders[:8])
        return ResourceExhausted(
            Reason.REASON_MEMORY_FULL,
            f"it takes {size_bytes} bytes of memory ({_parts(served)}), of {self._budget.limit_bytes} only "
            f"{self._budget.free_bytes} are free: {shown}; it is loaded as soon as there is room. Delete a deployment, "
            "mark some on demand, or raise OCTAVO_INFERENCE_MEMORY_LIMIT_BYTES",
        )

    async def _unload(self, served: ServedModel) -> None:
        if not served.is_idle:
            return
        served.unload()
        self._logger.info("unloaded until it is asked for", extra={"version": served.key.version})
        self.changed()
        await self._dispose(served)
        if self._is_wanted(served) and (served.is_awaited or not self._roster.may_leave(served.key)):
            self.wake(served)

    async def _drain(self, served: ServedModel) -> None:
        await served.drain(self._drain_s)
        if task := self._loads.get(served):
            await asyncio.wait([task])  # what it was promised is in use until then
        await self._dispose(served)
        self._roster.draining.remove(served)
        if lease := self._leases.pop(served, None):
            lease.close()
        self._logger.info("unloaded", extra={"version": served.key.version})
        await asyncio.to_thread(self._bundles.sweep)
        self.changed()

    async def _dispose(self, served: ServedModel) -> None:
        """Stops an engine and gives its memory back, to the budget when the system has it."""
        if reservation := self._reservations.pop(served, None):
            self._outgoing.add(reservation)
        if loaded := served.take():
            await asyncio.to_thread(loaded.stop)
            remains = weakref.ref(loaded)
            del loaded  # the last that holds its arrays
            await self._forget(remains, served)
            await asyncio.to_thread(self._heap.trim)
        if reservation:
            self._outgoing.discard(reservation)
            reservation.release()

    async def _forget(self, remains: Callable[[], object | None], served: ServedModel) -> None:
        """Waits until calls that are over no longer hold a model: the last ones end, failed ones leave cycles behind.

        Collecting these stops everything for some milliseconds, so it is not done without need.
        """
        for _ in range(COLLECTIONS):
            if not remains():
                return
            await asyncio.sleep(ROOM_INTERVAL_S)
            if remains():
                gc.collect()
        self._logger.warning("something still holds %s, and its memory", served.key.name)

    def _fail(self, served: ServedModel, error: OctavoError) -> None:
        self._release(served)
        if lease := self._leases.pop(served, None):
            lease.close()
        served.fail(error)

    def _release(self, served: ServedModel) -> None:
        if reservation := self._reservations.pop(served, None):
            reservation.release()

    def _is_wanted(self, served: ServedModel) -> bool:
        return self._roster.models.get(served.key) is served

    def _is_stale(self, served: ServedModel, now_s: float) -> bool:
        is_old = 0 < self._keep_alive_s < now_s - served.last_use_s
        return is_old and self._roster.is_on_demand(served.key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _parts(served: ServedModel) -> str:
    if not (footprint := served.footprint):
        raise AssertionError("asked before it was estimated")
    return f"weights {footprint.weights_bytes}, cache {footprint.cache_bytes}, working {footprint.working_bytes}"
