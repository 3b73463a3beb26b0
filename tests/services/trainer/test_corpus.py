"""A text becomes token arrays once; a text that cannot is refused with what is wrong."""

import threading
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import FailedPrecondition
from octavo.v1 import trainer_pb2 as pb
from services.trainer.corpus import CorpusCache, CorpusSpec

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely — and more temperate.\n" * 40


def spec(tokenizer=pb.TOKENIZER_KIND_CHARACTER, **changes):
    fields = {"blob": "blobs/sha256:00", "vocab_size": 300, "validation_fraction": 0.1} | changes
    return CorpusSpec(tokenizer=tokenizer, **fields)


class Source:
    """A blob store with one blob, which counts how often it is asked."""

    def __init__(self, content):
        self.content = content.encode() if isinstance(content, str) else content
        self.downloads = 0

    def download(self, blob: str, path: Path):
        self.downloads += 1
        path.write_bytes(self.content)


def prepare(directory, content, wanted=None):
    return CorpusCache(directory).prepare(wanted or spec(), Source(content).download, lambda _: None, "job")


@pytest.mark.parametrize("tokenizer", [pb.TOKENIZER_KIND_CHARACTER, pb.TOKENIZER_KIND_BYTE_BPE])
def test_the_parts_decode_to_the_text_they_came_from(tmp_path, tokenizer):
    corpus = prepare(tmp_path, TEXT, spec(tokenizer))
    cut = int(len(TEXT) * 0.9)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == TEXT[:cut]
    assert corpus.tokenizer.decode(corpus.validation.tolist()) == TEXT[cut:]
    assert corpus.facts.validation_bytes == len(TEXT[cut:].encode())
    assert corpus.train.dtype == np.uint16


def test_the_same_corpus_is_made_once(tmp_path):
    source = Source(TEXT)
    for _ in range(3):
        CorpusCache(tmp_path).prepare(spec(), source.download, lambda _: None, "job")
    assert source.downloads == 1
    CorpusCache(tmp_path).prepare(spec(validation_fraction=0.2), source.download, lambda _: None, "job")
    assert source.downloads == 2


def test_workers_that_make_the_same_corpus_at_once_both_get_it(tmp_path):
    barrier = threading.Barrier(2)
    found = []

    def download(blob, path):
        path.write_bytes(TEXT.encode())
        barrier.wait(5)

    def work(name):
        cache = CorpusCache(tmp_path)
        found.append(cache.prepare(spec(), download, lambda _: None, name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert np.array_equal(found[0].train, found[1].train)
    assert [entry.name for entry in tmp_path.iterdir()] == [spec().key]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        (b"caf\xe9 au lait" * 100, "byte 3 of the text is not UTF-8"),
        ("abc", "cannot be split"),
    ],
)
def test_a_text_that_cannot_be_learnt_from_is_refused_and_nothing_is_kept(tmp_path, content, complaint):
    with pytest.raises(FailedPrecondition, match=complaint):
        prepare(tmp_path, content)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_leaves_nothing(tmp_path):
    def download(blob, path):
        path.write_bytes(b"half")
        raise FailedPrecondition(0, "gone")

    with pytest.raises(FailedPrecondition, match="gone"):
        CorpusCache(tmp_path).prepare(spec(), download, lambda _: None, "job")
    assert list(tmp_path.iterdir()) == []
