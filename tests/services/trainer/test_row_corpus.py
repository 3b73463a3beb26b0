"""Rows become prompts and answers; what cannot is left out and counted; the split does not depend on their order."""

import csv
import io
import random

import numpy as np
import pytest

from octavo.errors import FailedPrecondition
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.row_file import RowFile
from services.trainer.token_rows import Examples
from tests.services.trainer.sums import DATA, ROWS, jsonl, prepare


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def texts(corpus):
    """Every row of both parts as (prompt, answer), and that it is ended."""
    for rows in corpus.rows:
        for begin, end, prompt in zip(rows.begins, rows.ends, rows.prompts, strict=True):
            ids = rows.tokens[begin:end].tolist()
            assert ids[-1] == corpus.tokenizer.end_id
            yield corpus.tokenizer.decode(ids[:prompt]), corpus.tokenizer.decode(ids[prompt:-1])


@pytest.mark.parametrize("tokenizer", [pb.TOKENIZER_KIND_CHARACTER, pb.TOKENIZER_KIND_BYTE_BPE])
def test_every_row_is_a_prompt_an_answer_and_an_end(tmp_path, tokenizer):
    corpus = prepare(tmp_path, jsonl(ROWS), tokenizer=tokenizer)
    assert sorted(texts(corpus)) == sorted((row["input"] + "\n", row["output"]) for row in ROWS)
    facts = corpus.facts
    assert facts.train_rows + facts.validation_rows == len(ROWS)
    assert facts.vocab_size == corpus.tokenizer.vocab_size > corpus.tokenizer.end_id
    validation = Examples.of(corpus.rows[1], DATA, 64)
    assert corpus.tokenizer.size_bytes(validation.learnt.tolist()) == facts.validation_bytes


def test_csv_and_jsonl_of_the_same_rows_are_the_same(tmp_path):
    one = prepare(tmp_path / "jsonl", jsonl(ROWS))
    other = prepare(tmp_path / "csv", as_csv(ROWS), form=datasets_pb2.DATASET_FORMAT_CSV)
    assert np.array_equal(one.train, other.train)
    assert np.array_equal(one.validation, other.validation)


def test_rows_that_are_added_or_shuffled_move_no_other_to_the_other_side(tmp_path):
    def validating(name, rows):
        path = tmp_path / name
        path.write_bytes(jsonl(rows))
        found = RowFile(path, datasets_pb2.DATASET_FORMAT_JSONL, DATA, 0.1).exchanges()
        return {one.prompt for one in found if one.is_validation}

    held_out = validating("all", ROWS)
    assert 8 <= len(held_out) <= 32
    assert validating("shuffled", random.Random(1).sample(ROWS, len(ROWS))) == held_out
    more = [{"input": f"new {n}", "output": "x"} for n in range(100)]
    assert {prompt for prompt in validating("more", more + ROWS) if "new" not in prompt} == held_out
    assert validating("twice", ROWS + ROWS) == held_out


def test_two_rows_are_one_to_learn_and_one_to_validate(tmp_path):
    facts = prepare(tmp_path, jsonl(ROWS[:2])).facts
    assert (facts.train_rows, facts.validation_rows) == (1, 1)


def test_rows_that_cannot_be_learnt_from_are_left_out_and_counted_by_why(tmp_path):
    bad = [
        {"input": "a"},
        {"input": "a", "output": " \n"},
        {"input": "a", "output": None},
        {"input": "", "output": "b"},
        {"output": "b"},
        {"input": "a", "output": "b<|endoftext|>c"},
    ]
    content = jsonl(bad + ROWS) + b'{"input": "caf\xe9", "output": "x"}\n\n[1]\n'
    corpus = prepare(tmp_path, content)
    assert corpus.facts.dropped_rows == {
        "there is no column 'output'": 1,
        "the answer is empty": 2,
        "the prompt is empty": 2,
        "<|endoftext|>, which ends an answer, is in the text": 1,
        "the row is damaged": 2,
    }
    assert len(list(texts(corpus))) == len(ROWS)


def test_a_dataset_without_a_row_to_learn_from_is_refused_with_why(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"no row can be learnt from.*2 left out: the answer is empty"):
        prepare(tmp_path, jsonl([{"input": "a", "output": ""}] * 2))
    with pytest.raises(FailedPrecondition, match="only one row"):
        prepare(tmp_path, jsonl(ROWS[:1] * 5))


def test_whole_texts_have_no_prompt(tmp_path):
    data = pb.DataSpec(text_column="text", loss_on=pb.LOSS_TARGET_ALL, packing=True)
    stories = [{"text": f"Once there were {n} mice.\n\nThe end."} for n in range(40)]
    corpus = prepare(tmp_path, jsonl(stories), data=data)
    assert sorted(texts(corpus)) == sorted(("", story["text"]) for story in stories)
