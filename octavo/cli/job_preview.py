"""`octavo jobs preview`: what a training would learn, token by token, before anything runs."""

from typing import Annotated

import typer

from octavo.cli import options, screen, short_names, spec_fields
from octavo.cli.examples_view import examples_view
from octavo.cli.options import AsJson
from octavo.cli.train import TOKENIZERS, Tokenizer
from octavo.v1 import trainer_pb2 as pb

LONGEST_S = 1800.0
"""The first look at a large dataset turns all of it into tokens."""


def preview(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="What to learn from: `tiny` or `tiny/2`.")],
    *,
    examples: Annotated[int, typer.Option(min=1, max=20, help="How many to show.")] = 3,
    tokenizer: Annotated[Tokenizer | None, typer.Option(help="Characters, or byte-level BPE.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of TrainSpec, as for `octavo train`.", metavar="KEY=VALUE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Shows the first examples of a dataset as training will see them, and which of their tokens are learnt.

    Nothing runs; a job of the same settings finds the tokens ready.

    Example: `octavo jobs preview questions --set answer_column=reply --set 'template={question} '`
    """
    # The model does not matter to what is learnt.
    spec = pb.TrainSpec(dataset=short_names.dataset(dataset), model="models/preview")
    if tokenizer:
        spec.tokenizer.kind = TOKENIZERS[tokenizer]
    spec_fields.apply(spec, set_ or [])
    with options.connected(context) as client:
        request = pb.PreviewExamplesRequest(job=pb.Job(train=spec), examples=examples)
        with screen.stderr().status("turning the dataset into tokens, where no job has done so yet"):
            response = client.trainer.PreviewExamples(request, timeout=LONGEST_S)
    if as_json:
        screen.print_json(response)
    else:
        screen.stdout().print(examples_view(response))
