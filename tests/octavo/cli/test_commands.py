"""Commands against a real suite: what they print, in words and in JSON, and how they exit."""

import json
import re
import uuid

import pytest

from octavo.cli import __main__ as command_line
from tests.services.inference import tensor_graphs


@pytest.fixture
def octavo(suite, capsys):
    """Runs a command line on the suite; (exit code, stdout, stderr)."""

    def run(*arguments):
        code = command_line.main(["--data", str(suite.data_dir), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}: the quick brown fox\n" for number in range(2000)))
    return path


@pytest.fixture
def name():
    return f"t{uuid.uuid4().hex[:10]}"


def test_a_dataset_lives_from_a_file_to_its_deletion(octavo, text_file, name):
    code, out, _ = octavo("datasets", "create", name, text_file, "--description", "foxes", "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["name"], made["version"], made["description"]) == (f"datasets/{name}", "1", "foxes")
    assert name in octavo("datasets", "list")[1]
    assert name in {
        bare["name"].removeprefix("datasets/")
        for bare in json.loads(octavo("datasets", "list", "--json")[1])["datasets"]
    }
    assert "2,000" in octavo("datasets", "show", name)[1]
    assert "line 0: the quick brown fox" in octavo("datasets", "read", name, "--rows", "1")[1]
    text_file.write_text("shorter\n" * 100)
    assert json.loads(octavo("datasets", "update", name, text_file, "--json")[1])["version"] == "2"
    assert json.loads(octavo("datasets", "show", f"{name}/1", "--json")[1])["version"] == "1"
    assert octavo("datasets", "delete", name, "--yes")[0] == 0
    code, out, err = octavo("datasets", "show", name)
    assert (code, out) == (1, "")
    assert "DATASET_NOT_FOUND" in err
    assert "`octavo datasets list` shows what there is" in err


def test_a_preview_shows_what_is_wrong_and_makes_nothing(octavo, tmp_path, name):
    rows = tmp_path / "rows.csv"
    rows.write_text("input,output\nhello,world\nempty,\n")
    code, out, _ = octavo("datasets", "preview", rows)
    assert code == 0
    assert "csv" in out
    assert "input, output" in out
    assert json.loads(octavo("datasets", "preview", rows, "--json")[1])["format"] == "DATASET_FORMAT_CSV"
    assert octavo("datasets", "show", name)[0] == 1


def test_an_existing_name_is_refused_with_its_reason(octavo, text_file, name):
    assert octavo("datasets", "create", name, text_file)[0] == 0
    code, _, err = octavo("datasets", "create", name, text_file, "--json")
    assert code == 1
    assert json.loads(err)["details"][0]["reason"] == "DATASET_EXISTS"


def test_a_wrong_field_is_said_by_its_path_with_what_would_be_right(octavo, text_file, name):
    octavo("datasets", "create", name, text_file)
    code, out, err = octavo("train", name, "--model", "poet", "--set", "heads=7", "--plan")
    assert (code, out) == (1, "")
    assert "architecture.heads" in err
    assert "7 does not divide" in err


def test_a_plan_runs_nothing_and_shows_what_it_comes_to(octavo, text_file, name):
    octavo("datasets", "create", name, text_file)
    arguments = ("train", name, "--model", name, "--size", "2", "--steps", "50", "--tokenizer", "char", "--plan")
    code, out, _ = octavo(*arguments)
    assert code == 0
    assert "2 blocks" in out
    plan = json.loads(octavo(*arguments, "--json")[1])
    assert (plan["totalSteps"], plan["train"]["seed"]) == ("50", "1337")
    assert json.loads(octavo("jobs", "list", "--filter", f"labels.x = {name}", "--json")[1]).get("jobs", []) == []


def test_a_plan_as_a_file_comes_to_the_same_plan_again(octavo, text_file, name, tmp_path):
    octavo("datasets", "create", name, text_file)
    asked = tmp_path / "asked.yaml"
    asked.write_text(f"dataset: {name}\nmodel: {name}\nsize: 2\ntime_budget: 5min\ntokenizer: {{kind: character}}\n")
    code, resolved, shown = octavo("jobs", "plan", asked)
    assert code == 0
    assert "2 blocks" in shown
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved)
    first, second = (json.loads(octavo("jobs", "plan", one, "--json")[1]) for one in (asked, again))
    assert first["configurationId"] == second["configurationId"]
    assert first["train"] == second["train"]
    code, out, _ = octavo("train", "--config", again, "--seed", "5", "--plan", "--json")
    assert (code, json.loads(out)["train"]["seed"]) == (0, "5")
    again.write_text(resolved.replace("dropout:", "drop_out:"))
    code, out, err = octavo("train", "--config", again, "--plan")
    assert (code, out) == (1, "")
    assert "did you mean dropout?" in err


def test_nothing_is_best_before_anything_was_trained_and_statistics_count(octavo, text_file, name):
    octavo("datasets", "create", name, text_file)
    code, _, err = octavo("jobs", "best", name)
    assert code == 1
    assert "JOB_NOT_FOUND" in err
    assert octavo("jobs", "statistics")[0] == 0
    assert json.loads(octavo("jobs", "statistics", "--json")[1])["maxRunningJobs"] >= 1


def test_a_preview_of_examples_says_what_is_given_and_what_is_learnt(octavo, tmp_path, name):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "question,reply\n" + "".join(f"{number} + 1,= {number + 1}\n" for number in range(30)) + "31 + 1,\n"
    )
    octavo("datasets", "create", name, rows)
    asked = ("jobs", "preview", name, "--set", "answer_column=reply", "--set", "template={question} ")
    code, out, _ = octavo(*asked, "--examples", "2")
    assert code == 0
    assert re.search(r"given +'\d+ \+ 1 '", out)
    assert re.search(r"learnt +'= \d+<\|endoftext\|>'", out)
    assert "1 rows: the answer is empty" in out
    tokens = json.loads(octavo(*asked, "--examples", "1", "--json")[1])["examples"][0]["tokens"]
    assert [token.get("bearsLoss", False) for token in tokens][-2:] == [True, True]
    code, _, err = octavo("jobs", "preview", name)
    assert code == 1
    assert "name the one to learn: 'question', 'reply'" in err


@pytest.mark.slow
def test_a_training_is_followed_paused_listed_and_cancelled(octavo, text_file, name):
    octavo("datasets", "create", name, text_file)
    code, out, _ = octavo("train", name, "--model", name, "--size", "1", "--steps", "100000", "--detach")
    assert code == 0
    job = out.strip()
    assert job.startswith("jobs/")
    assert name in octavo("jobs", "list")[1]
    assert octavo("jobs", "update", job)[0] == 2
    updated = json.loads(octavo("jobs", "update", job, "--priority", "7", "--title", "foxes", "--json")[1])
    assert (updated["priority"], updated["displayName"]) == (7, "foxes")
    assert octavo("jobs", "cancel", job)[0] == 0
    code, out, _ = octavo("jobs", "watch", job, "--json")
    assert code == 1
    events = [json.loads(line) for line in out.splitlines()]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["stateChange"]["state"] == "JOB_STATE_CANCELLED"
    assert "cancelled" in octavo("jobs", "show", job)[1]
    assert octavo("jobs", "logs", job)[0] == 0
    lines = [json.loads(line) for line in octavo("jobs", "logs", job, "--json")[1].splitlines()]
    assert lines[-1]["type"] == "state"
    assert {"timestamp", "level", "message", "step", "loss", "grad_norm"} <= lines[0].keys()
    assert octavo("jobs", "delete", job, "--yes")[0] == 0
    assert octavo("jobs", "show", job)[0] == 1


@pytest.mark.slow
def test_a_model_lives_from_training_to_text(octavo, text_file, name, tmp_path):
    octavo("datasets", "create", name, text_file)
    code, out, _ = octavo(
        *("train", name, "--model", name, "--size", "1", "--steps", "30", "--tokenizer", "char"),
        *("--set", "validation_fraction=0.05", "--alias", "champion", "--deploy", "--json"),
    )
    assert code == 0
    assert any("metric" in json.loads(line) for line in out.splitlines())
    assert f"{name}/1" in octavo("models", "show", name)[1]
    resolved = json.loads(octavo("models", "resolve", f"{name}@champion", "--json")[1])
    assert resolved["name"] == f"models/{name}/versions/1"
    assert "logits within" in octavo("models", "resolve", name)[1]
    assert octavo("deployments", "create", name, f"{name}/1")[0] == 0

    generate = ("generate", name, "line 7", "--max-tokens", "20", "--seed", "5")
    code, text, usage = octavo(*generate)
    assert code == 0
    assert octavo(*generate)[1] == text
    assert f"{name}/1  6 + 20 tokens" in usage
    events = [json.loads(line) for line in octavo(*generate, "--json")[1].splitlines()]
    assert "".join(event.get("chunk", {}).get("text", "") for event in events) + "\n" == text
    assert events[-1]["done"]["usage"]["completionTokens"] == 20

    assert re.fullmatch("[0-9]{3}: (the|fox)\n", octavo("generate", name, "l", "--regex", "[0-9]{3}: (the|fox)")[1])
    assert octavo("generate", name, "l", "--choice", "fox", "--choice", "the")[1] in ("fox\n", "the\n")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text('{"type": "integer", "minimum": 10, "maximum": 99}')
    grammar.write_text('root ::= "fox" | "(" root ")"')
    assert 10 <= int(octavo("generate", name, "l", "--json-schema", schema)[1]) <= 99
    assert "fox" in octavo("generate", name, "l", "--grammar", grammar, "--min-p", "0.1")[1]
    assert octavo("generate", name, "l", "--min-tokens", "5", "--repetition-penalty", "1.2")[0] == 0
    code, _, err = octavo("generate", name, "l", "--regex", "a", "--choice", "b")
    assert code != 0
    assert "give one of" in err
    code, _, err = octavo("generate", name, "l", "--regex", "(")
    assert code != 0
    assert "unclosed group" in err

    held = json.loads(octavo("models", "served", "--json")[1])["servedModels"]
    (mine,) = [model for model in held if model["name"] == f"servedModels/{name}.1.fp32"]
    assert (mine["state"], mine["deployments"]) == ("SERVED_MODEL_STATE_READY", [f"deployments/{name}"])
    assert int(mine["completionTokenCount"]) >= 60
    assert re.search(rf"{name}.1.fp32 +ready +{name} +[0-9.]+ MiB", octavo("models", "served")[1])
    assert octavo("deployments", "create", name, f"{name}/1", "--on-demand")[0] == 0
    assert "ready on demand" in octavo("models", "served")[1]
    assert f"{name}/1 on demand" in octavo("deployments", "show", name)[1]

    assert "blocks.0.attention" in octavo("inspect", name)[1]
    assert json.loads(octavo("inspect", name, "--tensors", "--json")[1])["tensors"]
    assert octavo("models", "download", name, tmp_path / "bundle")[0] == 0
    assert (tmp_path / "bundle" / "model.safetensors").stat().st_size > 0
    assert octavo("models", "alias", f"{name}@best", f"{name}/1")[0] == 0
    assert octavo("models", "alias", f"{name}@best", "--delete")[0] == 0
    assert octavo("deployments", "delete", name, "--yes")[0] == 0


def test_an_onnx_graph_lives_from_a_directory_to_being_served(octavo, name, tmp_path):
    directory = tmp_path / "exported"
    tensor_graphs.identity(directory)
    code, out, _ = octavo("models", "register", name, directory, "--description", "says it again", "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["name"], made["description"]) == (f"models/{name}/versions/1", "says it again")
    assert f"models/{name}/versions/2" in octavo("models", "register", name, directory)[1]
    assert octavo("deployments", "create", name, f"{name}/2")[0] == 0
    code, _, err = octavo("generate", name, "line 7")
    assert code == 1
    assert "takes and gives tensors, not text; call ModelInfer" in err
    assert octavo("deployments", "delete", name, "--yes")[0] == 0


def test_a_directory_without_files_is_refused(octavo, name, tmp_path):
    code, _, err = octavo("models", "register", name, tmp_path)
    assert code == 1
    assert "at least one file" in err


@pytest.mark.slow
def test_a_version_is_exported_in_fewer_bits_and_served_so(octavo, text_file, name):
    octavo("datasets", "create", name, text_file)
    train = ("train", name, "--model", name, "--size", "1", "--steps", "30", "--tokenizer", "char")
    assert octavo(*train, "--export-precision", "int8_weights")[0] == 0
    export = ("export", name, "--precision", "int8", "--max-perplexity-increase", "0.1")
    code, out, _ = octavo(*export, "--plan")
    assert code == 0
    assert "10.00% more perplexity" in out
    code, _, err = octavo(*export, "--deploy", name, "--alias", "small")
    assert code == 0
    assert f"made models/{name}/versions/2" in err
    assert "int8_weights (" in err
    assert "int8" in octavo("deployments", "list")[1]
    code, text, usage = octavo("generate", name, "line 7", "--max-tokens", "20", "--seed", "5")
    assert code == 0
    assert f"{name}/2  6 + 20 tokens" in usage
    assert octavo("generate", name, "line 7", "--max-tokens", "20", "--seed", "5")[1] == text
    assert octavo("deployments", "create", name, f"{name}/2", "--precision", "int8-weights")[0] == 0
    code, _, err = octavo("export", name, "--precision", "int3")
    assert code == 1
    assert "export.precisions[0]" in err
    assert octavo("deployments", "delete", name, "--yes")[0] == 0


def test_status_and_diagnosis_describe_suite_and_machine(octavo):
    code, out, _ = octavo("status")
    assert code == 0
    assert out.count("ready") == 5
    assert "processor" in octavo("diagnose")[1]
    assert json.loads(octavo("diagnose", "--json")[1])["memory"]["totalBytes"]
    assert octavo("models", "list")[0] == 0
    assert octavo("deployments", "list", "--json")[0] == 0


def test_generating_with_a_model_that_is_not_there_says_what_there_is(octavo):
    code, out, err = octavo("generate", "nobody", "hello")
    assert (code, out) == (1, "")
    assert "nobody" in err
