"""`octavo generate MODEL PROMPT`: text as it arrives on stdout, what it took on stderr."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, screen, short_names, wording
from octavo.cli.options import AsJson
from octavo.client import Client
from octavo.errors import Unavailable
from octavo.v1 import errors_pb2
from octavo.v1 import inference_pb2 as pb

Temperature = Annotated[float | None, typer.Option("--temperature", "-t", min=0, max=100, help="0: likeliest.")]
MinTokens = Annotated[int | None, typer.Option(min=0, help="Fewest tokens before the text may end.")]
MinP = Annotated[
    float | None, typer.Option(min=0, max=1, help="Sample among tokens this fraction as likely as the best.")
]
Repetition = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1: repeat less; 1.1 is usual.")]
JsonSchema = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A file: the text is JSON that satisfies this schema.")
]
Regex = Annotated[str | None, typer.Option(help="The whole text matches this regular expression.")]
Grammar = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A file: the text follows this grammar in GBNF.")
]
Choices = Annotated[list[str] | None, typer.Option("--choice", help="The text is this one, or another; repeatable.")]

LOADING_S = 60.0
"""How long a model may take to be loaded, in seconds."""


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="`poet`, `poet@champion`, `poet/3` or `deployments/poet`.")],
    prompt: Annotated[str, typer.Argument(help="What to continue; `-` reads it from stdin.")],
    *,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to generate.")] = 200,
    temperature: Temperature = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Sample among the likeliest of this mass.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text, always.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    echo: Annotated[bool, typer.Option(help="Put the prompt in front.")] = False,
    min_tokens: MinTokens = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    choice: Choices = None,
    as_json: AsJson = False,
) -> None:
    """Continues a text with a served model and prints it while it comes.

    Examples:

    `octavo generate poet "Once upon a time" --max-tokens 100`

    `octavo generate poet "def main" --temperature 0.7 --top-k 40 --seed 7`

    `head -c 500 notes.txt | octavo generate poet -`

    `octavo generate poet "A person: " --json-schema person.json`

    `octavo generate poet "Is it late? " --choice yes --choice no`

    `octavo generate poet "Call me at " --regex "[0-9]{3}-[0-9]{4}"`
    """
    parameters = pb.GenerationParameters(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or [],
        echo=echo or None,
        min_tokens=min_tokens,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        structured_output=form(json_schema, regex, grammar, choice),
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    request = pb.StreamGenerateRequest(model=short_names.answerer(model), prompt=text, parameters=parameters)
    with options.connected(context) as client:
        events = stream(client, request)
        if as_json:
            for event in events:
                screen.print_json_line(event)
        elif done := print_text(events):
            screen.stderr().print(usage(done), style="dim", soft_wrap=True)


def form(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choices: list[str] | None
) -> pb.StructuredOutput | None:
    """The form that the text shall have, if any. Raises typer.BadParameter for more than one."""
    wanted = {
        "json_schema": json_schema and json_schema.read_text("utf-8"),
        "regex": regex,
        "grammar": grammar and grammar.read_text("utf-8"),
        "choices": pb.Choices(texts=choices) if choices else None,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) > 1:
        raise typer.BadParameter("give one of --json-schema, --regex, --grammar and --choice")
    return pb.StructuredOutput(**given) if given else None  # type: ignore[arg-type]


def stream(client: Client, request: pb.StreamGenerateRequest) -> Iterator[pb.StreamGenerateResponse]:
    """The events of a generation; a model that is being loaded is waited for."""
    deadline_s = time.monotonic() + LOADING_S
    while True:
        try:
            yield from client.inference.StreamGenerate(request)
            return
        except Unavailable as error:
            # Refused before the first event, so that nothing is said twice.
            if error.reason != errors_pb2.REASON_MODEL_LOADING or time.monotonic() > deadline_s:
                raise
            time.sleep(error.retry_after_s or 0.2)


def print_text(events: Iterator[pb.StreamGenerateResponse]) -> pb.GenerationDone | None:
    """Writes text to stdout as it arrives, and answers with how it ended."""
    done = None
    for event in events:
        if event.HasField("done"):
            done = event.done
        else:
            write(event.chunk.text)
    write("\n")
    return done


def write(text: str) -> None:
    """Writes to stdout at once; to a terminal without what commands it, elsewhere as it is."""
    sys.stdout.write(wording.printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def usage(done: pb.GenerationDone) -> str:
    """`poet/1  24 + 100 tokens  1,250 tokens/s  first after 4 ms  seed 7  length`."""
    decode_s = wording.seconds(done.timings.decode_duration)
    generated = done.usage.completion_tokens
    # The first token comes with the prompt's own pass; decoding is what is between it and the last.
    speed = f"{(generated - 1) / decode_s:,.0f} tokens/s" if decode_s > 0 and generated > 1 else ""
    first_s = wording.seconds(done.timings.first_token_duration)
    ends = {wording.enum_word(pb.FinishReason.Name(end.finish_reason), "FINISH_REASON_") for end in done.ends}
    parts = [
        wording.compact(done.version),
        f"{done.usage.prompt_tokens} + {generated} tokens",
        speed,
        f"first after {wording.lasting(first_s)}",
        f"seed {done.seed}",
        f"ended by {', '.join(sorted(ends))}",
    ]
    return "  ".join(part for part in parts if part)
