"""`--set KEY=VALUE` reaches every field of a spec, and says what would be right where it does not."""

import pytest
import typer

from octavo.cli import spec_fields
from octavo.v1 import trainer_pb2 as pb


def applied(*settings):
    spec = pb.TrainSpec()
    spec_fields.apply(spec, settings)
    return spec


def test_values_read_as_the_type_of_their_field():
    spec = applied("dropout=0.1", "batch_size=1_024", "seed=7", "device=cpu", "time_budget=90s", "family=gpt2")
    assert (spec.dropout, spec.batch_size, spec.seed, spec.device) == (0.1, 1024, 7, "cpu")
    assert spec.time_budget.seconds == 90
    assert spec.family == pb.MODEL_FAMILY_GPT2


def test_a_field_is_found_by_its_path_or_by_its_last_word_alone():
    spec = applied("architecture.layers=3", "heads=8", "optimizer.learning_rate=0.01", "tie_embeddings=true")
    assert (spec.architecture.layers, spec.architecture.heads) == (3, 8)
    assert spec.optimizer.learning_rate == 0.01
    assert spec.architecture.tie_embeddings is True


def test_lists_are_written_with_commas():
    assert list(applied("export_precisions=int8,fp16").export_precisions) == ["int8", "fp16"]
    assert list(applied("export_precisions=").export_precisions) == []


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("dropuot=0.1", "did you mean dropout"),
        ("vocab_size=300", "architecture.vocab_size or tokenizer.vocab_size"),
        ("kind=char", "none of character, byte_bpe"),
        ("steps=many", "a whole number"),
        ("dropout=much", "a number"),
        ("tie_embeddings=perhaps", "true or false"),
        ("time_budget=soon", "time_budget=soon"),
        ("steps", "KEY=VALUE"),
        ("batch_size=99999999999999", "batch_size"),
    ],
)
def test_what_cannot_be_set_is_refused_with_what_would_be_right(setting, hint):
    with pytest.raises(typer.BadParameter, match=hint):
        applied(setting)


def test_every_field_of_a_train_spec_can_be_reached():
    names = [spec_fields.dotted(path) for path in spec_fields.paths(pb.TrainSpec.DESCRIPTOR)]
    assert {"dataset", "steps", "optimizer.matrix_learning_rate", "checkpoints.keep_best", "lora.rank"} <= set(names)
    assert len(names) == len(set(names))
