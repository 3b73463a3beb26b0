"""Rows to learn from: sums as questions with their answers."""

import asyncio
import json

from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.corpus import CorpusSpec
from services.trainer.corpus_cache import CorpusCache

DATA = pb.DataSpec(
    input_column="input", answer_column="output", template="{input}\n", loss_on=pb.LOSS_TARGET_ANSWER, packing=True
)
ROWS = [{"input": f"{n} + {n}", "output": f"{2 * n}, naïvely"} for n in range(200)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def prepare(directory, content, *, tokenizer=pb.TOKENIZER_KIND_CHARACTER, data=DATA, form=None):
    spec = CorpusSpec(
        blob="blobs/sha256:00",
        tokenizer=tokenizer,
        vocab_size=300,
        validation_fraction=0.1,
        form=form or datasets_pb2.DATASET_FORMAT_JSONL,
        data=data,
    )
    return CorpusCache(directory, 1 << 30).prepare(spec, lambda _, path: path.write_bytes(content), lambda _: None)


async def add_rows(suite, client, name, rows):
    path = suite.directory / f"{name}.jsonl"
    await asyncio.to_thread(path.write_bytes, jsonl(rows))
    blob = await client.upload(path)
    request = datasets_pb2.CreateDatasetRequest(dataset=datasets_pb2.Dataset(blob=blob.name), dataset_id=name)
    await client.datasets.CreateDataset(request)
