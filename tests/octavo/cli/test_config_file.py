"""A train spec as a YAML file: what is written reads back, and what is wrong is told with its line."""

import pytest
from google.protobuf.duration_pb2 import Duration

from octavo.cli import config_file, spec_fields
from octavo.cli.failure import Refusal
from octavo.v1 import trainer_pb2 as pb

WHOLE = """
dataset: tiny
model: poet
family: gpt2
architecture: {layers: 3, tie_embeddings: yes}
tokenizer:
  kind: byte_bpe
  vocab_size: 1_024
time_budget: 5min
optimizer:
  learning_rate: 1e-3
  weight_decay: 0
aliases: [champion, "007x"]
deployment: poet
seed:
"""


@pytest.fixture
def read(tmp_path):
    def of(text):
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return config_file.read(path)

    return of


def faults(read, text):
    """What is said of a file, without its path."""
    with pytest.raises(Refusal) as refusal:
        read(text)
    return [line.partition("spec.yaml:")[2] for line in refusal.value.message.splitlines()]


def test_a_file_says_what_the_contract_names_in_words_of_the_command_line(read):
    assert read(WHOLE) == pb.TrainSpec(
        dataset="datasets/tiny",
        model="models/poet",
        family=pb.MODEL_FAMILY_GPT2,
        architecture=pb.Architecture(layers=3, tie_embeddings=True),
        tokenizer=pb.TokenizerSpec(kind=pb.TOKENIZER_KIND_BYTE_BPE, vocab_size=1024),
        time_budget=Duration(seconds=300),
        optimizer=pb.OptimizerSpec(learning_rate=0.001, weight_decay=0.0),
        aliases=["champion", "007x"],
        deployment="deployments/poet",
    )


def test_an_empty_file_asks_for_nothing(read):
    assert read("# nothing yet\n") == pb.TrainSpec()


def filled(message, depth=0):
    """A message with every field set to something that is not its default."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and field.name in {"steps"}:
            continue
        if field.full_name == "octavo.v1.Architecture.vocab_size":
            continue
        if field.message_type and field.message_type.full_name == "google.protobuf.Duration":
            getattr(message, field.name).FromMilliseconds(90_500)
        elif field.message_type:
            filled(getattr(message, field.name), depth + 1)
        else:
            value = {"string": "no: 1e3\n# ü", "double": 1.5e-7, "bool": False, "enum": 2}.get(
                {9: "string", 1: "double", 8: "bool", 14: "enum"}.get(field.type, ""), 7
            )
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def test_whatever_a_spec_holds_is_written_so_that_it_reads_back(read):
    spec = filled(pb.TrainSpec())
    spec.dataset, spec.model, spec.deployment = "datasets/tiny/versions/2", "models/poet", "deployments/poet"
    spec.base_version = "models/poet/versions/1"
    assert len(config_file.write(spec).splitlines()) > len(list(spec_fields.paths(pb.TrainSpec.DESCRIPTOR))) - 10
    assert read(config_file.write(spec)) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset: tiny\nbach_size: 3\n", "2: there is no field bach_size; did you mean batch_size?"),
        (
            "optimizer:\n  beta_1: 0.9\n",
            "2: there is no field optimizer.beta_1; did you mean optimizer.beta1?",
        ),
        ("heads: 4\n", "1: there is no field heads; did you mean architecture.heads?"),
        ("steps: many\n", "1: steps: a whole number is needed"),
        ("steps: 1.5\n", "1: steps: a whole number is needed"),
        ("dropout: low\n", "1: dropout: a number is needed"),
        ("family: bert\n", "1: family: 'bert' is none of gpt2, llama, qwen3"),
        ("time_budget: soon\n", "1: time_budget: 'soon' is no duration; write 60s, 5min or 1.5h"),
        ("batch_size: [1, 2]\n", "1: batch_size needs one value; there is a list"),
        ("optimizer: fast\n", "1: optimizer needs fields below it, `name: value` each; there is 'fast'"),
        ("aliases: champion\n", "1: aliases needs a list, such as [a, b]; there is 'champion'"),
        ("steps: 1\ntime_budget: 60s\n", "1: steps and time_budget exclude one another; leave one out"),
        ("- dataset\n", "1: the file needs fields below it, `name: value` each; there is a list"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_what_would_be_right(read, text, said):
    assert faults(read, text) == [said]


def test_everything_that_is_wrong_is_told_at_once(read):
    assert [line.partition(":")[0] for line in faults(read, "sise: 4\nmodel: poet\ndropout: x\nsteps: y\n")] == [
        "1",
        "3",
        "4",
    ]


def test_what_is_no_yaml_or_no_text_is_refused(read, tmp_path):
    with pytest.raises(Refusal, match="line 2"):
        read("a: [1\nb: }")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(Refusal, match="UTF-8"):
        config_file.read(tmp_path / "binary.yaml")
    with pytest.raises(Refusal, match="No such file"):
        config_file.read(tmp_path / "none.yaml")
