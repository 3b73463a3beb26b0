"""`octavo`: the command line, put together. An error becomes one readable block and an exit code, never a traceback."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import octavo
from octavo.cli import (
    datasets,
    deployments,
    diagnose,
    export,
    failure,
    generate,
    inspect_command,
    jobs,
    models,
    options,
    train,
    whereabouts,
)
from octavo.cli.status import status
from octavo.cli.up import up
from octavo.errors import OctavoError
from octavo.serving.settings import SettingsError

app = typer.Typer(
    name="octavo",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(status)
app.command()(train.train)
app.command()(export.export)
app.command()(generate.generate)
app.command()(inspect_command.inspect)
app.command()(diagnose.diagnose)
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(deployments.app, name="deployments")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"octavo {octavo.__version__}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(help="The suite's data directory: OCTAVO_DATA_DIR, or ~/.octavo.", file_okay=False, metavar="DIR"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train small GPTs, prove their ONNX exports, serve them fast and account for every result.

    Begin with `octavo up`, then in a second terminal:

    `octavo datasets create tiny my-text.txt`

    `octavo train tiny --model poet --time-budget 60s --deploy`

    `octavo generate poet "Once upon a time"`
    """
    del version
    context.obj = options.Suite((data or whereabouts.default_data_dir()).expanduser())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and answers with its exit code: 0 well, 1 an error of the call, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="octavo")
    except (OctavoError, failure.Refusal) as error:
        failure.show(error, as_json="--json" in given)
        return failure.EXIT_ERROR
    except SettingsError as error:
        failure.show(failure.Refusal(str(error)), as_json="--json" in given)
        return failure.EXIT_USAGE
    except Exception as error:
        failure.show(failure.defect(error, whereabouts.default_data_dir()), as_json="--json" in given)
        return failure.EXIT_ERROR
    except KeyboardInterrupt:
        return failure.EXIT_INTERRUPTED
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else failure.EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
