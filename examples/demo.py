"""The whole life of a model on real text, to watch: `python -m examples.demo [--data FILE.txt] [--stay]`.

Starts a suite of its own on free ports, so that it never meets another one; keeps everything for the next time.
"""

import argparse
import json
import shlex
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from examples import standard_library
from octavo.cli import (
    deployments,
    failure,
    follow,
    generate,
    inspect_command,
    models,
    ports,
    screen,
    up,
    whereabouts,
    wording,
)
from octavo.cli.fleet import Fleet
from octavo.cli.job_story import JobStory
from octavo.cli.job_view import sample_lines
from octavo.cli.plan_view import plan_view
from octavo.cli.train import duration
from octavo.client import Client
from octavo.errors import NotFound, OctavoError
from octavo.v1 import datasets_pb2, deployments_pb2, inference_pb2, registry_pb2, trainer_pb2

NAME = "demo"
SEED = 7
TOKENS = 120
TEMPERATURE = 0.7
# Below it, a vocabulary of characters learns more than one of pieces.
BPE_FROM_BYTES = 1_000_000
LOADING_S = 60.0


@dataclass(frozen=True)
class Show:
    """What the demonstration is about."""

    text: str
    source: str
    prompt: str
    time_budget: str
    directory: Path
    is_staying: bool


def main() -> int:
    """Runs the demonstration; the exit code."""
    show = parse()
    began_s = time.monotonic()
    screen.stdout().print(Text("\nOctavo: the whole life of a model", style="bold"))
    try:
        with up.stop_signals() as stopped, Fleet(show.directory, ports.free()) as fleet:
            up.wait_until_ready(fleet, stopped)
            act(show, fleet, stopped)
            if not stopped.is_set():
                say_how_to_go_on(show, fleet, time.monotonic() - began_s)
            while show.is_staying and not stopped.wait(0.2):
                if fallen := fleet.fallen():
                    raise up.fell(fallen)
    except (OctavoError, failure.Refusal) as error:
        failure.show(error, as_json=False)
        return failure.EXIT_ERROR
    except KeyboardInterrupt:
        return failure.EXIT_INTERRUPTED
    return failure.EXIT_INTERRUPTED if stopped.is_set() and not show.is_staying else 0


def parse() -> Show:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE", help="any UTF-8 text; the standard library unless given")
    parser.add_argument("--directory", type=Path, default=Path(".octavo/demo"), help="where everything is kept")
    parser.add_argument("--time-budget", default="90s", help="how long to train: 90s, 5min")
    parser.add_argument("--prompt", help="what the model continues")
    parser.add_argument("--stay", action="store_true", help="keep the suite running at the end")
    given = parser.parse_args()
    if given.data is None:
        text, source = standard_library.corpus(), "the source of Python's standard library"
    else:
        try:
            text, source = given.data.read_text(encoding="utf-8"), str(given.data)
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"--data {given.data} is no UTF-8 text that can be read: {error}")
    prompt = given.prompt or ("def read(self" if given.data is None else opening(text))
    return Show(text, source, prompt, given.time_budget, given.directory, given.stay)


def opening(text: str) -> str:
    """The beginning of a line from the middle of a text: something its model can continue."""
    lines = text[len(text) // 2 :].splitlines()
    line = next((line.strip() for line in lines if len(line.split()) > 3), text.strip())
    return " ".join(line[:60].split(" ")[:3])


def act(show: Show, fleet: Fleet, stopped: threading.Event) -> None:
    """The seven steps; leaves early when stopped."""
    with whereabouts.connect(fleet.data_dir) as client:
        chapter(1, "Five programs", "a registry, a trainer, an inference server, an inspector, an HTTP gateway")
        screen.stdout().print(up.program_table(fleet.addresses, fleet.health()))
        cancel_leftovers(client)
        dataset = bring_data(show, client)
        story = train(show, client, dataset, stopped)
        if story.state != trainer_pb2.JOB_STATE_SUCCEEDED:
            follow.conclude(story)
            raise KeyboardInterrupt
        show_learning(story)
        version = show_proof(client)
        talk(show, client, fleet)
        take_apart(client, version)


def chapter(number: int, title: str, words: str) -> None:
    """A heading."""
    console = screen.stdout()
    console.print()
    console.print(
        Text.assemble((f" {number} ", "reverse"), (f" {title}", "bold"), (f"  {words}", "dim")), soft_wrap=True
    )


def cancel_leftovers(client: Client) -> None:
    """A demonstration that was killed leaves its training to go on; nobody waits for it any more."""
    for state in ("RUNNING", "QUEUED", "PAUSED"):
        for job in client.trainer.ListJobs(trainer_pb2.ListJobsRequest(filter=f"state = {state}")).jobs:
            client.trainer.CancelJob(trainer_pb2.CancelJobRequest(name=job.name))
            screen.stdout().print(f"cancelled {job.name}, left by an earlier demonstration", style="yellow")


def bring_data(show: Show, client: Client) -> str:
    """Imports the text; one that is there already keeps its version."""
    chapter(2, "A dataset", f"{show.source}, named by the SHA-256 of its bytes")
    blob = client.upload(show.text.encode())
    found = datasets_pb2.Dataset(name=f"datasets/{NAME}", blob=blob.name, description=show.source)
    try:
        dataset = client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=found.name))
        if dataset.blob != blob.name:
            dataset = client.datasets.UpdateDataset(datasets_pb2.UpdateDatasetRequest(dataset=found))
    except NotFound:
        dataset = client.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset=found, dataset_id=NAME))
    counted = dataset.statistics
    facts: list[tuple[str, screen.Cell]] = [
        ("dataset", f"{dataset.name}/versions/{dataset.version}"),
        ("content", dataset.blob),
        ("size", f"{wording.size(counted.size_bytes)}, {counted.rows:,} lines, {counted.symbols} symbols"),
    ]
    screen.print_facts(facts)
    return f"{dataset.name}/versions/{dataset.version}"


def specification(show: Show, dataset: str) -> trainer_pb2.TrainSpec:
    """What to train: all that is not said here follows from the data and the time."""
    spec = trainer_pb2.TrainSpec(dataset=dataset, model=f"models/{NAME}", deployment=f"deployments/{NAME}")
    spec.aliases.append("champion")
    spec.time_budget.CopyFrom(duration(show.time_budget))
    spec.validation_fraction = 0.02
    spec.evaluation_interval_steps = 40  # each brings a sample to look at
    spec.sample.prompt = show.prompt
    spec.sample.length = 160
    if len(show.text) >= BPE_FROM_BYTES:
        spec.tokenizer.kind = trainer_pb2.TOKENIZER_KIND_BYTE_BPE
        spec.tokenizer.vocab_size = 1024
    return spec


def train(show: Show, client: Client, dataset: str, stopped: threading.Event) -> JobStory:
    """Plans, trains and follows; a demonstration that is stopped takes its job with it."""
    job = trainer_pb2.Job(train=specification(show, dataset))
    chapter(3, "A plan", "before anything runs: everything the trainer derives from data and time")
    planned = client.trainer.PlanJob(trainer_pb2.PlanJobRequest(job=job))
    screen.stdout().print(plan_view(planned.plan))
    chapter(4, "Training", "in a process of its own; killed at any moment, it goes on from its last checkpoint")
    created = client.trainer.CreateJob(trainer_pb2.CreateJobRequest(job=job))
    ended = threading.Event()

    def cancel_when_stopped() -> None:
        while not ended.wait(0.2):
            if stopped.is_set():
                client.trainer.CancelJob(trainer_pb2.CancelJobRequest(name=created.name))
                return

    watcher = threading.Thread(target=cancel_when_stopped, name="cancel-when-stopped")
    watcher.start()
    try:
        return follow.follow(client, created)
    finally:
        ended.set()
        watcher.join()


def show_learning(story: JobStory) -> None:
    """What training changed: the loss, and the same prompt before and after."""
    console = screen.stdout()
    first, last = story.first_sample, story.sample
    if story.losses and story.evaluation:
        start = sum(loss for _, loss in story.losses[:3]) / len(story.losses[:3])
        console.print(
            Text.assemble(
                ("loss ", "dim"),
                (f"{start:.2f} -> {story.loss:.2f}", "bold"),
                (f"   validation {story.evaluation.validation_loss:.2f}", ""),
                (f", {story.evaluation.bits_per_byte:.2f} bits a byte: plain text has 8", "dim"),
            )
        )
    if first and last and first.step < last.step:
        for sample in (first, last):
            console.print(Text(f"at step {sample.step:,}:", style="dim"))
            for line in sample_lines(sample, console.width, rows=4):
                console.print(line)


def show_proof(client: Client) -> registry_pb2.Version:
    """What was registered, and the proof that its ONNX graph is the checkpoint."""
    chapter(5, "A version, proven", "registered only because its ONNX graph computes what the checkpoint computes")
    request = registry_pb2.ResolveVersionRequest(reference=f"models/{NAME}@champion")
    version = client.registry.ResolveVersion(request)
    audit = client.registry.VerifyAudit(registry_pb2.VerifyAuditRequest())
    words = "holds" if audit.valid else f"is broken at event {audit.first_invalid_sequence}"
    chain = f"the hash chain over {audit.checked_events} events {words}"
    screen.print_facts([*models.version_facts(version), ("audit", chain)])
    return version


def talk(show: Show, client: Client, fleet: Fleet) -> None:
    """The same request through both doors: the text is the same to the last byte."""
    chapter(6, "Text", "streamed over gRPC, then over HTTP with server-sent events")
    name = f"deployments/{NAME}"
    wanted = client.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=name))
    deployments.wait_until_settled(client, wanted, LOADING_S)
    grpc_text = talk_grpc(show, client, name)
    http_text = talk_http(show, f"http://{fleet.addresses['gateway']}/api/v1/{name}:streamGenerate")
    is_same = grpc_text == http_text
    words = "the same text to the last byte, as one seed must give" if is_same else "the texts differ: a defect"
    screen.stdout().print(Text(f"\n{words}", style="green" if is_same else "bold red"))


def talk_grpc(show: Show, client: Client, name: str) -> str:
    """The text as the inference server streams it."""
    parameters = inference_pb2.GenerationParameters(max_tokens=TOKENS, temperature=TEMPERATURE, seed=SEED)
    request = inference_pb2.StreamGenerateRequest(model=name, prompt=show.prompt, parameters=parameters)
    screen.stdout().print(Text(show.prompt, style="dim"), end="")
    text = ""
    done = inference_pb2.GenerationDone()
    for event in generate.stream(client, request):
        done = event.done if event.HasField("done") else done
        text += tell(event.chunk.text)
    screen.stdout().print(Text(f"\n{generate.usage(done)}\n", style="dim"))
    return text


def talk_http(show: Show, url: str) -> str:
    """The text as the gateway streams it, and the command that asks for it."""
    parameters = {"maxTokens": TOKENS, "temperature": TEMPERATURE, "seed": SEED}
    body = {"prompt": show.prompt, "parameters": parameters}
    quoted = shlex.quote(json.dumps(body))
    for line in (
        f"curl -N {url} \\",
        "  -H 'content-type: application/json' -H 'accept: text/event-stream' \\",
        f"  -d {quoted}",
    ):
        screen.stdout().print(Text(line, style="dim"), soft_wrap=True)
    screen.stdout().print(Text(show.prompt, style="dim"), end="")
    return "".join(tell(part) for part in read_events(url, body))


def tell(part: str) -> str:
    """Writes a part of a text as it comes."""
    generate.write(part)
    return part


def read_events(url: str, body: Mapping[str, object]) -> Iterator[str]:
    """The parts of a text as server-sent events bring them."""
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - http, by construction
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: ")).get("chunk", {}).get("text", "")


def take_apart(client: Client, version: registry_pb2.Version) -> None:
    """What the inspector reads in the artifact's headers."""
    chapter(7, "Taken apart", "the inspector reads headers and never executes anything")
    inspection = inspect_command.inspection(client, version.name)
    inspect_command.print_inspection(inspection, has_layers=False)


def say_how_to_go_on(show: Show, fleet: Fleet, elapsed_s: float) -> None:
    """What to do next."""
    console = screen.stdout()
    installed = Path(sys.executable).parent / "octavo"
    near = installed.is_relative_to(Path.cwd())
    program = "octavo" if shutil.which("octavo") else str(installed.relative_to(Path.cwd()) if near else installed)
    octavo = f"{program} --data {show.directory}"
    console.print(
        Text(f"\nDone in {wording.lasting(elapsed_s)}. Everything is kept in {show.directory}.", style="bold")
    )
    again = "this suite runs until Ctrl-C" if show.is_staying else f"{octavo} up"
    for name, words in (
        ("the suite", again),
        ("more text", f'{octavo} generate {NAME} "{show.prompt}"'),
        ("longer", f"{octavo} train {NAME} --model {NAME} --time-budget 10min --deploy"),
        ("the model", f"{octavo} models download {NAME}@champion ./{NAME}"),
        ("HTTP", f"http://{fleet.addresses['gateway']}/docs" if show.is_staying else "http://127.0.0.1:8080/docs"),
    ):
        console.print(Text.assemble((f"{name:<11}", "dim"), words), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
