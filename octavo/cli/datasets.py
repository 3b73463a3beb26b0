"""`octavo datasets …`: text and rows to learn from."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.text import Text

from octavo.cli import options, paging, screen, short_names, transfer, wording
from octavo.cli.options import AsJson, Limit, Yes
from octavo.v1 import datasets_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Text and rows to learn from: immutable versions under a name.")

Name = Annotated[str, typer.Argument(help="`tiny`, `tiny/2` or `datasets/tiny`.", metavar="NAME")]
File = Annotated[Path, typer.Argument(help="Plain UTF-8 text, JSON lines or CSV.", exists=True, dir_okay=False)]


@app.command("list")
def list_datasets(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """Lists the datasets.

    Example: `octavo datasets list`
    """
    with options.connected(context) as client:
        response = paging.gather(client.datasets.ListDatasets, pb.ListDatasetsRequest(), "datasets", limit)
    if as_json:
        screen.print_json(response)
        return
    screen.print_table(
        ["name", ">version", "format", ">size", ">characters", ">symbols", ">rows", "changed"],
        [_row(dataset) for dataset in response.datasets],
        empty="no datasets yet; `octavo datasets create NAME FILE` makes one",
    )


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it: `tiny`.")],
    file: File,
    description: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Makes a dataset from a file.

    Example: `octavo datasets create tiny my-text.txt`
    """
    with options.connected(context) as client:
        blob = transfer.upload(client, file)
        dataset = client.datasets.CreateDataset(
            pb.CreateDatasetRequest(
                dataset=pb.Dataset(blob=blob.name, description=description),
                dataset_id=wording.bare(short_names.dataset(name)),
            )
        )
    _show(dataset, as_json=as_json)


@app.command()
def update(context: typer.Context, name: Name, file: File, as_json: AsJson = False) -> None:
    """Makes the next version of a dataset from a file; the old ones stay.

    Example: `octavo datasets update tiny longer-text.txt`
    """
    with options.connected(context) as client:
        blob = transfer.upload(client, file)
        dataset = pb.Dataset(name=short_names.dataset(name), blob=blob.name)
        request = pb.UpdateDatasetRequest(dataset=dataset)
        request.update_mask.paths.append("blob")
        dataset = client.datasets.UpdateDataset(request)
    _show(dataset, as_json=as_json)


@app.command()
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Shows a dataset.

    Example: `octavo datasets show tiny`
    """
    with options.connected(context) as client:
        dataset = client.datasets.GetDataset(pb.GetDatasetRequest(name=short_names.dataset(name)))
    _show(dataset, as_json=as_json)


@app.command()
def read(
    context: typer.Context,
    name: Name,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="Rows, or lines of text, to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Shows the first rows of a dataset.

    Example: `octavo datasets read tiny --rows 3`
    """
    with options.connected(context) as client:
        response = client.datasets.ReadRows(pb.ReadRowsRequest(name=short_names.dataset(name), page_size=rows))
    if as_json:
        screen.print_json(response)
    else:
        _show_rows(list(response.rows))


@app.command()
def preview(
    context: typer.Context,
    file: File,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Looks at a file as if it were a dataset: what is in it, what is wrong. Nothing is made of it.

    Example: `octavo datasets preview rows.csv`
    """
    with options.connected(context) as client:
        blob = transfer.upload(client, file)
        response = client.datasets.PreviewDataset(pb.PreviewDatasetRequest(blob=blob.name, rows=rows))
    if as_json:
        screen.print_json(response)
        return
    screen.print_facts(_statistics(response.format, response.statistics))
    _show_rows(list(response.rows))
    for finding in response.findings:
        severity = wording.enum_word(pb.DatasetFindingSeverity.Name(finding.severity), "DATASET_FINDING_SEVERITY_")
        where = f" line {finding.line}" if finding.line else ""
        style = "red" if finding.severity == pb.DATASET_FINDING_SEVERITY_ERROR else "yellow"
        screen.stdout().print(Text.assemble((f"{severity}{where}: ", style), finding.description))


@app.command()
def delete(context: typer.Context, name: Name, yes: Yes = False) -> None:
    """Deletes a dataset with all its versions.

    Example: `octavo datasets delete tiny --yes`
    """
    full = short_names.dataset(name)
    options.confirm(f"Delete {full} with all its versions?", yes=yes)
    with options.connected(context) as client:
        client.datasets.DeleteDataset(pb.DeleteDatasetRequest(name=full))
    screen.stderr().print(f"deleted {full}")


def _row(dataset: pb.Dataset) -> list[screen.Cell]:
    counted = dataset.statistics
    return [
        Text(wording.bare(dataset.name), style="bold"),
        str(dataset.version),
        _format_word(dataset.format),
        wording.size(counted.size_bytes),
        wording.count(counted.characters),
        str(counted.symbols),
        wording.count(counted.rows),
        wording.ago(dataset.update_time),
    ]


def _show(dataset: pb.Dataset, *, as_json: bool) -> None:
    if as_json:
        screen.print_json(dataset)
        return
    screen.print_facts(
        [
            ("dataset", Text(f"{dataset.name}/versions/{dataset.version}", style="bold")),
            ("description", dataset.description),
            *_statistics(dataset.format, dataset.statistics),
            ("content", dataset.blob.removeprefix("blobs/")),
            ("made", wording.ago(dataset.create_time)),
        ]
    )


def _statistics(form: pb.DatasetFormat.ValueType, counted: pb.DatasetStatistics) -> list[tuple[str, screen.Cell]]:
    return [
        ("format", _format_word(form)),
        ("size", wording.size(counted.size_bytes)),
        ("characters", f"{counted.characters:,} of {counted.symbols:,} symbols"),
        ("rows", f"{counted.rows:,}"),
        ("columns", ", ".join(counted.columns)),
    ]


def _show_rows(rows: list[pb.DatasetRow]) -> None:
    for row in rows:
        content = json_format.MessageToDict(row.content)
        text = content["text"] if set(content) == {"text"} else json_format.MessageToJson(row.content, indent=None)
        screen.stdout().print(Text.assemble((f"{row.index:>6} ", "dim"), wording.one_line(str(text), 150)))


def _format_word(form: pb.DatasetFormat.ValueType) -> str:
    return wording.enum_word(pb.DatasetFormat.Name(form), "DATASET_FORMAT_")
