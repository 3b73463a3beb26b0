"""`octavo models served`: what the inference server holds, how much memory that takes and how fast it answers."""

import typer
from rich.text import Text

from octavo.cli import options, paging, screen, wording
from octavo.cli.options import AsJson, Limit
from octavo.v1 import inference_pb2 as pb

_STYLES = {
    pb.SERVED_MODEL_STATE_READY: "bold green",
    pb.SERVED_MODEL_STATE_FAILED: "bold red",
    pb.SERVED_MODEL_STATE_UNLOADED: "dim",
}


def served(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """Lists what the inference server holds: state, memory, queue, tokens per second over the last ten seconds.

    Example: `octavo models served`
    """
    with options.connected(context) as client:
        request = pb.ListServedModelsRequest()
        response = paging.gather(client.inference.ListServedModels, request, "served_models", limit)
    if as_json:
        screen.print_json(response)
        return
    figures = (">memory", ">running", ">waiting", ">tokens/s", ">prompt/s", ">requests", ">cached")
    columns = ["model", "state", "deployments", *figures, "asked"]
    rows = [_row(model) for model in response.served_models]
    screen.print_table(columns, rows, empty="nothing is served; `octavo deployments create NAME VERSION` does")
    for model in response.served_models:
        if model.failure:
            screen.stdout().print(Text(f"{wording.bare(model.name)}: {model.failure}", style="dim"), soft_wrap=True)


def _row(model: pb.ServedModel) -> list[screen.Cell]:
    waits = f"{model.waiting_count}"
    if model.HasField("longest_wait_duration"):
        waits += f" ({wording.lasting(wording.seconds(model.longest_wait_duration))})"
    failed = f" ({wording.count(model.failed_request_count)} failed)" if model.failed_request_count else ""
    return [
        Text(wording.bare(model.name), style="bold"),
        _state(model),
        ", ".join(wording.bare(name) for name in model.deployments),
        wording.size(model.memory_size_bytes) if model.memory_size_bytes else "",
        f"{model.running_count}/{model.slot_count}" if model.slot_count else "",
        waits,
        wording.count(model.completion_tokens_per_second),
        wording.count(model.prompt_tokens_per_second),
        wording.count(model.request_count) + failed,
        _share(model.cached_token_count, model.cached_token_count + model.prompt_token_count),
        wording.ago(model.last_request_time),
    ]


def _state(model: pb.ServedModel) -> Text:
    word = wording.enum_word(pb.ServedModelState.Name(model.state), "SERVED_MODEL_STATE_")
    text = Text(word, style=_STYLES.get(model.state, "yellow"))
    return text.append(" on demand", style="dim") if model.on_demand else text


def _share(part: int, whole: int) -> str:
    """Tokens of prompts that were still in the cache, of all."""
    return f"{part / whole:.0%}" if whole else ""
