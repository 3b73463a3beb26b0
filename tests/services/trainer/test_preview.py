"""What is previewed is what is learnt: the same tokens with the same labels, before anything runs."""

import pytest
from google.protobuf.json_format import MessageToDict

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.packed_batches import Packs
from services.trainer.preview import previewed
from services.trainer.token_rows import Examples
from tests.services.trainer.sums import DATA, ROWS, add_rows, jsonl, prepare

CONTEXT = 12


def resolved(data=DATA):
    return pb.TrainSpec(data=data, seed=1, architecture=pb.Architecture(context_length=CONTEXT))


def test_tokens_and_labels_are_those_of_the_batches(tmp_path):
    corpus = prepare(tmp_path, jsonl([{"input": "a long question", "output": "yes"}, *ROWS[:40]]))
    found = previewed(corpus, resolved(), 20)
    fitting = Examples.of(corpus.rows[0], DATA, CONTEXT)
    packs = Packs(fitting, context_length=CONTEXT, seed=1, is_packing=False)
    for place, example in enumerate(found.examples):
        batch = packs.batch([place])
        ids = [token.id for token in example.tokens]
        assert batch.tokens[0, : len(ids) - 1].tolist() == ids[:-1]
        labels = [token.id if token.bears_loss else -100 for token in example.tokens[1:]]
        assert batch.targets[0, : len(labels)].tolist() == labels
        assert ids[-1] == corpus.tokenizer.end_id
        assert example.tokens[-1].bears_loss
        assert corpus.tokenizer.decode(ids) == "".join(token.text for token in example.tokens)
    assert found.corpus.training_rows + found.corpus.validation_rows == 41
    assert 0.5 < found.corpus.fill <= 1


def test_a_prompt_that_was_cut_is_said_to_be(tmp_path):
    rows = [{"input": "how much is it if one adds up", "output": "9"}] * 30 + ROWS[:40]
    found = previewed(prepare(tmp_path, jsonl(rows)), resolved(), 20)
    cut = [example for example in found.examples if example.is_truncated]
    assert found.corpus.truncated_rows >= 30
    assert {len(example.tokens) for example in cut} == {CONTEXT + 1}


async def test_a_preview_prepares_what_its_job_finds(suite):
    async with suite.trainer() as client:
        await add_rows(suite, client, "sums", [*ROWS[:60], {"input": "none", "output": ""}])
        job = pb.Job(train=suite.spec(dataset="datasets/sums"))
        request = pb.PreviewExamplesRequest(job=job, examples=2)
        found = await client.trainer.PreviewExamples(request)
        assert len(found.examples) == 2
        learnt = "".join(token.text for token in found.examples[0].tokens if token.bears_loss)
        assert learnt.endswith("naïvely<|endoftext|>")
        assert MessageToDict(found.corpus)["droppedRows"] == {"the answer is empty": "1"}
        assert found.data.template == "{input}\n"
        assert found.context_length == 32
        corpora = {path.name for path in (suite.directory / "trainer" / "corpora").iterdir()} - {".locks"}
        assert len(corpora) == 1
        assert await client.trainer.PreviewExamples(request) == found
        with pytest.raises(InvalidArgument, match="1 to 20"):
            await client.trainer.PreviewExamples(pb.PreviewExamplesRequest(job=job, examples=21))
        await add_rows(suite, client, "hollow", [{"input": "a", "output": ""}])
        job.train.dataset = "datasets/hollow"
        with pytest.raises(FailedPrecondition, match="1 left out: the answer is empty"):
            await client.trainer.PreviewExamples(pb.PreviewExamplesRequest(job=job))
