"""Examples as training will see them: what became of the dataset, then what of each is learnt."""

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from octavo.cli import screen, wording
from octavo.v1 import trainer_pb2 as pb


def examples_view(response: pb.PreviewExamplesResponse) -> RenderableType:
    """The counts of the dataset, and below them the examples: text in quotes, with the ids of its tokens."""
    parts: list[RenderableType] = [screen.facts_grid(_facts(response))]
    for number, example in enumerate(response.examples, start=1):
        cut = "; its prompt was cut from the left" if example.is_truncated else ""
        parts.append(Text(f"\nexample {number}, {len(example.tokens)} tokens{cut}", style="bold"))
        parts.append(screen.facts_grid(_spans(example)))
    return Group(*parts)


def _facts(response: pb.PreviewExamplesResponse) -> Iterator[tuple[str, screen.Cell]]:
    corpus, data = response.corpus, response.data
    rows = f" in {corpus.training_rows:,} rows" if corpus.training_rows else ""
    held_out = f" in {corpus.validation_rows:,} rows" if corpus.validation_rows else ""
    yield "training", f"{wording.count(corpus.training_tokens)} tokens{rows}"
    yield "validation", f"{wording.count(corpus.validation_tokens)} tokens{held_out}"
    yield "vocabulary", f"{corpus.vocab_size:,} entries"
    filled = f", {corpus.fill:.0%} filled" if corpus.HasField("fill") else ""
    yield "context", f"{response.context_length} tokens{filled}"
    if response.HasField("data"):
        yield "template", "" if data.text_column else repr(data.template)
        yield "answer", data.text_column or data.answer_column
    yield "cut", f"{corpus.truncated_rows:,} prompts, from the left" if corpus.truncated_rows else ""
    for why, count in sorted(corpus.dropped_rows.items()):
        yield "left out", Text(f"{count:,} rows: {why}", style="yellow")


def _spans(example: pb.Example) -> Iterator[tuple[str, screen.Cell]]:
    """Neighbouring tokens that are learnt, or not, together."""
    for bears_loss, tokens in groupby(example.tokens, key=lambda token: token.bears_loss):
        span = list(tokens)
        text = "".join(token.text for token in span)
        yield "learnt" if bears_loss else "given", Text(repr(text), style="green" if bears_loss else "")
        yield "", Text(" ".join(str(token.id) for token in span), style="dim")
