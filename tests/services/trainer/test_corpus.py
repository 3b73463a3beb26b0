"""A text becomes token arrays once; a text that cannot is refused with what is wrong."""

import threading
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import FailedPrecondition
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import trainer_pb2 as pb
from services.trainer.corpus import CorpusSpec
from services.trainer.corpus_cache import CorpusCache

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


def cache(directory, limit_bytes=1 << 30):
    return CorpusCache(directory, limit_bytes)


def prepare(directory, content, wanted=None):
    return cache(directory).prepare(wanted or spec(), Source(content).download, lambda _: None)


def kept(directory):
    """The corpora there are, and whatever else was left behind."""
    return {entry.name for entry in directory.iterdir()} - {".locks"}


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
        cache(tmp_path).prepare(spec(), source.download, lambda _: None)
    assert source.downloads == 1
    cache(tmp_path).prepare(spec(validation_fraction=0.2), source.download, lambda _: None)
    assert source.downloads == 2


def test_jobs_that_want_the_same_corpus_at_once_make_it_once(tmp_path):
    source, found, said = Source(TEXT), [], []
    is_waiting = threading.Event()

    def download(blob, path):
        source.download(blob, path)
        assert is_waiting.wait(20)

    def say(message):
        said.append(message)
        if "waiting" in message:
            is_waiting.set()

    threads = [
        threading.Thread(target=lambda: found.append(cache(tmp_path).prepare(spec(), download, say))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert source.downloads == 1
    assert np.array_equal(found[0].train, found[1].train)
    assert kept(tmp_path) == {spec().key}


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "corpus.json"])
def test_a_damaged_corpus_is_made_again(tmp_path, name):
    whole = prepare(tmp_path, TEXT).train.copy()
    path = tmp_path / spec().key / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    source = Source(TEXT)
    again = cache(tmp_path).prepare(spec(), source.download, lambda _: None)
    assert source.downloads == 1
    assert np.array_equal(again.train, whole)


def test_corpora_beyond_the_limit_are_removed_but_none_that_is_read(tmp_path):
    read = prepare(tmp_path, TEXT, spec(validation_fraction=0.1))
    for fraction in (0.2, 0.3):
        prepare(tmp_path, TEXT, spec(validation_fraction=fraction))
    newest = spec(validation_fraction=0.4)
    cache(tmp_path, limit_bytes=1).prepare(newest, Source(TEXT).download, lambda _: None)
    assert kept(tmp_path) == {spec(validation_fraction=0.1).key, newest.key}
    assert len(read.train)
    del read
    cache(tmp_path, limit_bytes=1).prepare(newest, Source(TEXT).download, lambda _: None)
    assert kept(tmp_path) == {newest.key}


def test_the_least_recently_used_goes_first(tmp_path):
    fractions = (0.1, 0.2, 0.3)
    for fraction in fractions:
        prepare(tmp_path, TEXT, spec(validation_fraction=fraction))
    prepare(tmp_path, TEXT, spec(validation_fraction=0.1))
    one_bytes = sum(file.stat().st_size for file in (tmp_path / spec().key).iterdir())
    newest = spec(validation_fraction=0.4)
    cache(tmp_path, int(3.5 * one_bytes)).prepare(newest, Source(TEXT).download, lambda _: None)
    assert kept(tmp_path) == {spec(validation_fraction=fraction).key for fraction in (0.1, 0.3, 0.4)}


def test_what_a_lost_process_left_unfinished_is_removed(tmp_path):
    (tmp_path / ".lost").mkdir()
    (tmp_path / ".lost" / "content").write_text("half")
    prepare(tmp_path, TEXT)
    assert kept(tmp_path) == {spec().key}


def test_a_stop_while_tokens_are_made_leaves_nothing(tmp_path):
    class Stopped(Exception):
        pass

    def say(message):
        if "turning" in message:
            raise Stopped

    with pytest.raises(Stopped):
        cache(tmp_path).prepare(spec(), Source(TEXT).download, say)
    assert kept(tmp_path) == set()


@pytest.mark.parametrize("tokenizer", [pb.TOKENIZER_KIND_CHARACTER, pb.TOKENIZER_KIND_BYTE_BPE])
def test_a_text_read_in_blocks_has_the_tokens_it_has_as_a_whole(tmp_path, tokenizer, monkeypatch):
    text = (TEXT + "\u4e16\u754c 🙂 naïve\r\n") * 60
    monkeypatch.setattr("services.trainer.text_file._BLOCK_BYTES", 997)
    corpus = prepare(tmp_path, text, spec(tokenizer, vocab_size=400))
    cut = int(len(text) * 0.9)
    whole = (
        Tokenizer.train_characters(text)
        if tokenizer == pb.TOKENIZER_KIND_CHARACTER
        else Tokenizer.train_bpe([text[:cut]], vocab_size=400)
    )
    assert corpus.tokenizer.to_bytes() == whole.to_bytes()
    assert np.array_equal(corpus.train, whole.encode(text[:cut]))
    assert np.array_equal(corpus.validation, whole.encode(text[cut:]))
    assert corpus.facts.validation_bytes == len(text[cut:].encode())


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
    assert kept(tmp_path) == set()


def test_a_download_that_fails_leaves_nothing(tmp_path):
    def download(blob, path):
        path.write_bytes(b"half")
        raise FailedPrecondition(0, "gone")

    with pytest.raises(FailedPrecondition, match="gone"):
        cache(tmp_path).prepare(spec(), download, lambda _: None)
    assert kept(tmp_path) == set()
