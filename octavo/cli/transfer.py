"""Files to and from the suite, with a bar while bytes move."""

from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from octavo.cli import screen
from octavo.cli.failure import Refusal
from octavo.client import Client
from octavo.v1 import blobs_pb2, registry_pb2


def upload(client: Client, path: Path) -> blobs_pb2.Blob:
    """Uploads a file and answers with its blob. Raises Refusal when the file cannot be read."""
    # A transfer waits half a minute for a registry that is away; a person wants to know at once.
    client.registry.GetRegistryStatistics(registry_pb2.GetRegistryStatisticsRequest())
    try:
        with _bar() as bar:
            task = bar.add_task(f"upload {path.name}", total=path.stat().st_size)
            return client.upload(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None


def download(client: Client, blob_name: str, size_bytes: int, path: Path) -> None:
    """Writes a blob's verified bytes to a file. Raises Refusal when the file cannot be written."""
    try:
        with _bar() as bar:
            task = bar.add_task(f"download {path.name}", total=size_bytes)
            client.download(
                blob_name,
                path,
                size_bytes=size_bytes,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}") from None


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = screen.stderr()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
