"""Small models with random weights, exported, with vectors of this machine; engines over them."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from octavo.addresses import Addresses
from octavo.client import AsyncClient, transfer
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import graph_file, write_bundle
from octavo.formats.conformance import Conformance, PrecisionVectors, Vector
from octavo.formats.tokenizer import Tokenizer
from octavo.serving import ProcessMetrics, Telemetry, running
from octavo.v1.deployments_pb2 import (
    Deployment,
    DeploymentState,
    DeploymentTarget,
    GetDeploymentRequest,
    Precision,
    UpdateDeploymentRequest,
)
from octavo.v1.registry_pb2 import CreateVersionRequest, File, Version
from services import inference, registry
from services.inference.loader import Loader
from services.inference.rehearsal import Rehearsal
from services.inference.served_graph import ServedGraph
from services.inference.served_model import Key
from services.inference.session import Session
from services.inference.settings import InferenceSettings
from services.trainer import quantized_model
from services.trainer.activations import observe
from services.trainer.onnx_export import export_graph
from services.trainer.parity import record_conformance

SYMBOLS = "".join(map(chr, range(32, 96))) + "\n"
CONTEXT = 96


def write_random_bundle(directory, family, seed=0, tokenizer=None, **sizes):
    tokenizer = tokenizer or Tokenizer.train_characters(SYMBOLS, has_end=True)
    kv_heads = None if family == "gpt2" else 1
    usual = {"context_length": CONTEXT, "width": 32, "layers": 2, "heads": 2, "kv_heads": kv_heads}
    architecture = Architecture.derive(family, vocab_size=tokenizer.vocab_size, **(usual | sizes))
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(1 if len(size) == 1 and name.endswith("weight") else 0, 0.3, size).astype(np.float32)
        for name, size in architecture.tensors().items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_bundle(directory, architecture=architecture, tensors=tensors, tokenizer=tokenizer)
    graph = export_graph(directory)
    rehearsal = Rehearsal(open_session(graph, architecture, slots=1), chunk_tokens=16)
    prompts = [[1, 2, 3], list(range(40))]
    answers = [rehearsal.complete(prompt, 6) for prompt in prompts]
    vectors = tuple(
        Vector(prompt=tuple(prompt), greedy=tuple(greedy), log_probabilities=tuple(log_probabilities))
        for prompt, (greedy, log_probabilities) in zip(prompts, answers, strict=True)
    )
    Conformance({"fp32": PrecisionVectors(graph=graph.name, tolerance=1e-4, vectors=vectors)}).write(directory)
    return directory


def open_session(graph, architecture, slots, capacity=CONTEXT):
    served = ServedGraph(graph, architecture, threads=1, spin_us=0)
    return Session(served, served.new_cache(slots=slots, capacity=capacity))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """The bundle of a family, made once."""
    root = tmp_path_factory.mktemp("bundles")
    made = {}

    def bundle(family="gpt2", seed=0, tokenizer=None, **sizes):
        key = (family, seed, tokenizer, *sizes.items())
        if key not in made:
            made[key] = write_random_bundle(root / str(len(made)), family, seed, tokenizer, **sizes)
        return made[key]

    return bundle


@pytest.fixture(scope="session")
def quantized(bundles):
    """The bundle of a family with a graph in every precision that a CPU runs, made once."""
    made = {}

    def bundle(family):
        if family not in made:
            made[family] = directory = bundles(family, seed=77)
            windows = [np.random.default_rng(seed).integers(0, 60, CONTEXT) for seed in range(4)]
            seen = observe(directory, windows)
            for precision in ("int8", "int8_weights", "int4"):
                quantized_model.WRITERS[precision][0](directory, seen, lambda: None)
                record_conformance(directory, precision=precision, graph=graph_file(precision))
        return made[family]

    return bundle


@pytest.fixture
def session_over():
    """Opens a bundle's session."""

    def session(directory, slots=4):
        config = Architecture.from_config(json.loads((directory / "config.json").read_text()))
        return open_session(directory / "model.onnx", config, slots)

    return session


@pytest.fixture
async def load():
    """Loads bundles into running engines, and stops them at the end."""
    loaded = []

    async def loading(directory, version="models/poet/versions/1", precision=Precision.PRECISION_FP32, **settings):
        settings = {"slots": 4, "chunk_tokens": 16, "threads": 1, "wait_limit_s": 3600, **settings}
        logger = logging.getLogger("octavo.test")
        loader = Loader(InferenceSettings(port=0, **settings), asyncio.get_running_loop(), logger)
        model = await asyncio.to_thread(loader.load, directory, Key(version, precision))
        loaded.append(model)
        return model

    yield loading
    for model in loaded:
        await asyncio.to_thread(model.stop)


class Suite:
    """A registry and an inference server over it, with a client of both."""

    def __init__(self, client, settings, metrics, address, stop_inference, registry_stack):
        self.stop_inference = stop_inference
        self.stop_registry = registry_stack.aclose
        self._registry_stack = registry_stack
        self.address = address
        self.metrics = metrics
        self.client = client
        self.inference = client.inference
        self.deployments = client.deployments
        self.registry = client.registry
        self.settings = settings

    async def start_registry(self):
        """Starts the registry again, where it was."""
        port = int(self.settings.registry.rpartition(":")[2])
        await self._registry_stack.enter_async_context(running(registry_service(self.settings.data_dir, port)))

    async def publish(self, directory, model="poet"):
        """Registers the files of a directory as the model's next version."""
        files = [
            File(
                path=path.name,
                blob=(await transfer.upload(self.client.blobs, path)).name,
                size_bytes=path.stat().st_size,
            )
            for path in sorted(directory.iterdir())
        ]
        request = CreateVersionRequest(parent=f"models/{model}", version=Version(files=files))
        return (await self.registry.CreateVersion(request)).name

    async def deploy(self, *versions, deployment="poet", weights=(), **fields):
        """Asks for versions under a deployment, and waits until they are ready or refused."""
        shares = weights or (1,) * len(versions)
        targets = [
            DeploymentTarget(version=version, weight=weight, **fields)
            for version, weight in zip(versions, shares, strict=True)
        ]
        return await self.settled(await self.want(targets, deployment))

    async def want(self, targets, deployment="poet"):
        """Asks for targets under a deployment, and waits for nothing."""
        wanted = Deployment(name=f"deployments/{deployment}", targets=targets)
        return await self.deployments.UpdateDeployment(
            UpdateDeploymentRequest(deployment=wanted, allow_missing=True, update_mask={"paths": ["targets"]})
        )

    async def settled(self, made):
        async with asyncio.timeout(20):
            while True:
                now = await self.deployments.GetDeployment(GetDeploymentRequest(name=made.name))
                if now.state in (DeploymentState.DEPLOYMENT_STATE_READY, DeploymentState.DEPLOYMENT_STATE_FAILED):
                    return now
                await asyncio.sleep(0.02)


def registry_service(data_dir, port=0):
    settings = registry.Settings(port=port, data_dir=data_dir, drain_s=0.5)
    return registry.assemble(settings, Telemetry.create("registry", ProcessMetrics()))


PATIENT = {"drain_s": 5, "wait_limit_s": 3600}
"""For machines that stand still at times."""


@asynccontextmanager
async def opened(data_dir, **changes):
    async with AsyncExitStack() as stack:
        registry_stack = await stack.enter_async_context(AsyncExitStack())
        addresses = await registry_stack.enter_async_context(running(registry_service(data_dir)))
        settings = InferenceSettings(
            port=0,
            data_dir=data_dir,
            registry=addresses["registry"],
            **PATIENT | {"slots": 4, "chunk_tokens": 16, "threads": 1, "waiting_limit": 64, **changes},
        )
        metrics = ProcessMetrics()
        service = inference.assemble(settings, Telemetry.create("inference", metrics))
        inference_stack = await stack.enter_async_context(AsyncExitStack())
        addresses |= await inference_stack.enter_async_context(running(service))
        client = await stack.enter_async_context(
            AsyncClient(Addresses(registry=addresses["registry"], inference=addresses["inference"]))
        )
        yield Suite(client, settings, metrics, addresses["inference"], inference_stack.aclose, registry_stack)


@pytest.fixture(scope="session")
def open_suite():
    """Opens a registry and an inference server on free ports, over a directory, with settings: a context."""
    return opened


@pytest.fixture
async def suite(tmp_path):
    """A registry and an inference server for one test."""
    async with opened(tmp_path) as made:
        yield made
