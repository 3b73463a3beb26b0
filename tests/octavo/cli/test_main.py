"""The command line as a whole: help, versions, exit codes, and errors without tracebacks."""

import json

import pytest
import typer.main

import octavo
from octavo.cli import __main__ as command_line
from octavo.cli import datasets, ports
from octavo.cli.failure import Refusal


def commands(group, words=()):
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


ALL = dict(commands(typer.main.get_command(command_line.app)))


@pytest.fixture
def nothing_running(monkeypatch, tmp_path):
    """A data directory of nobody, and ports on which nothing listens."""
    monkeypatch.setenv("OCTAVO_DATA_DIR", str(tmp_path))
    for name, address in ports.free().addresses.items():
        monkeypatch.setenv(f"OCTAVO_{name.upper()}", address)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(words, capsys):
    assert "octavo " + " ".join(words) in ALL[words].help, "no example in the help"
    assert command_line.main([*words, "--help"]) == 0
    assert "Usage: octavo " + " ".join(words) in capsys.readouterr().out


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_and_argument_says_what_it_is(words):
    silent = [parameter.name for parameter in ALL[words].params if not getattr(parameter, "help", "")]
    assert not silent


def test_every_command_that_answers_can_answer_in_json():
    silent = {" ".join(words) for words, command in ALL.items() if "as_json" not in {p.name for p in command.params}}
    assert silent == {"datasets delete", "jobs delete", "deployments delete"}


def test_the_version_is_that_of_the_library(capsys):
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {octavo.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["datasets", "create", "tiny"], ["train", "tiny"], ["jobs", "list", "--limit", "0"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments, capsys):
    assert command_line.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error" in captured.err


def test_a_name_of_another_kind_is_wrong_usage(capsys):
    assert command_line.main(["models", "show", "datasets/tiny"]) == 2
    assert "datasets/tiny is not one of models/" in capsys.readouterr().err


def test_when_nothing_answers_the_error_says_how_to_start_the_suite(nothing_running, capsys):
    assert command_line.main(["datasets", "list"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nothing answers at 127.0.0.1:")
    assert "`octavo up` starts it" in captured.err
    assert "UPSTREAM_UNAVAILABLE" in captured.err


def test_an_upload_to_nobody_fails_at_once(nothing_running, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("once upon a time")
    assert command_line.main(["datasets", "create", "tiny", str(file)]) == 1
    assert "nothing answers at" in capsys.readouterr().err


def test_an_error_in_json_is_a_status_on_stderr(nothing_running, capsys):
    assert command_line.main(["models", "list", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["code"] == 14


def test_status_of_a_suite_that_is_away_says_so_and_exits_with_1(nothing_running, capsys):
    assert command_line.main(["status", "--json"]) == 1
    programs = json.loads(capsys.readouterr().out)["programs"]
    assert {program["state"] for program in programs.values()} == {"away"}
    assert set(programs) == {"gateway", "registry", "trainer", "inference", "inspector"}


def test_a_defect_leaves_its_traceback_in_a_file_and_not_on_the_screen(nothing_running, monkeypatch, tmp_path, capsys):
    def fail(*_args, **_kwargs):
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(datasets.paging, "gather", fail)
    assert command_line.main(["datasets", "list"]) == 1
    captured = capsys.readouterr()
    assert "a defect of octavo: ZeroDivisionError: nobody expected this" in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert "Traceback" in (tmp_path / "logs" / "command-line.log").read_text()


def test_a_misspelt_port_is_refused_by_its_variable(nothing_running, monkeypatch):
    monkeypatch.setenv("OCTAVO_TRAINER_PORT", "many")
    with pytest.raises(Refusal, match="OCTAVO_TRAINER_PORT=many is no port"):
        ports.usual()
