"""How text becomes tokens."""

from __future__ import annotations

import math

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, fault, obstacle, warning, within

_LARGEST_ALPHABET = 1 << 16
_LARGE_ALPHABET = 512
_LARGE_TEXT_BYTES = 16 << 20
_FEWEST_SIGHTS = 50
# Matrices of whole vectors are read and multiplied fastest.
_ROWS = 64


def _has_characters(case: Case) -> bool:
    return case.spec.tokenizer.kind == pb.TOKENIZER_KIND_CHARACTER


@fault("tokenizer.vocab_size", "Characters have the vocabulary that the text has.")
def vocabulary_of_characters(spec: pb.TrainSpec) -> Finding | None:
    asked = spec.tokenizer
    if asked.kind != pb.TOKENIZER_KIND_CHARACTER or not asked.HasField("vocab_size"):
        return None
    why = f"{asked.vocab_size} cannot be chosen: one token for each character of the text is as many as there are"
    return Finding(why, {"tokenizer.vocab_size": None}, "choose the kind BYTE_BPE")


@obstacle("tokenizer.kind", "A text read by characters has at most 65,536 different ones.")
def too_many_characters(case: Case) -> Finding | None:
    count = case.text.vocab_size
    if not _has_characters(case) or count <= _LARGEST_ALPHABET:
        return None
    why = f"the text has {count:,} different characters; at most {_LARGEST_ALPHABET:,} can be a vocabulary"
    return Finding(why, {"tokenizer.kind": "TOKENIZER_KIND_BYTE_BPE"})


@warning("tokenizer.kind", "A text read by characters has an alphabet, not thousands of signs.")
def large_alphabet(case: Case) -> Finding | None:
    count = case.text.vocab_size
    if not _has_characters(case) or not _LARGE_ALPHABET < count <= _LARGEST_ALPHABET:
        return None
    why = f"{count:,} different characters, most of them rare, are tokens that hardly learn"
    return Finding(why, {"tokenizer.kind": "TOKENIZER_KIND_BYTE_BPE"})


@warning("tokenizer.kind", "A large text is read in larger pieces than characters.")
def large_text_by_character(case: Case) -> Finding | None:
    size = case.text.size_bytes
    if not case.has("tokenizer.kind") or not _has_characters(case) or size <= _LARGE_TEXT_BYTES:
        return None
    why = f"{size / 2**20:.0f} MiB by single characters take two to four times the steps that pieces take"
    return Finding(why, {"tokenizer.kind": "TOKENIZER_KIND_BYTE_BPE"})


@warning("tokenizer.vocab_size", "Every entry of the vocabulary is seen often enough to be learnt.")
def vocabulary_rarely_seen(case: Case) -> Finding | None:
    entries, tokens = case.text.vocab_size, case.text.train_tokens
    if not case.has("tokenizer.vocab_size") or entries <= 1024 or tokens >= _FEWEST_SIGHTS * entries:
        return None
    why = f"{tokens:,} tokens show each of {entries:,} entries only {tokens / entries:.0f} times"
    return Finding(why, {"tokenizer.vocab_size": None}, "give more text")


@warning("tokenizer.vocab_size", "The vocabulary takes less of the model than its blocks.")
def vocabulary_dominates(case: Case) -> Finding | None:
    a = case.shape
    rows = (1 if a.tie_embeddings else 2) * a.width
    rest = a.parameters - rows * a.vocab_size
    if not case.has("tokenizer.vocab_size") or rows * a.vocab_size <= rest:
        return None
    fitting = rest // (2 * a.width) // _ROWS * _ROWS
    why = f"{a.vocab_size:,} entries are {rows * a.vocab_size / a.parameters:.0%} of the parameters"
    if fitting < 257:
        return Finding(why, {"tokenizer.vocab_size": 257}, "choose a larger size") if rest >= rows * 257 else None
    return Finding(why, {"tokenizer.vocab_size": fitting}, "choose a larger size")


@warning("tokenizer.vocab_size", "A large vocabulary is a multiple of 64.")
def vocabulary_ragged(case: Case) -> Finding | None:
    asked = case.spec.tokenizer.vocab_size
    if not case.has("tokenizer.vocab_size") or asked < 1024 or asked % _ROWS == 0:
        return None
    nearest = math.ceil(asked / _ROWS) * _ROWS
    why = f"{asked:,} is no multiple of {_ROWS}: the output matrix is multiplied with padding"
    return Finding(why, {"tokenizer.vocab_size": nearest})


ASKED = (within("tokenizer.vocab_size", 257, 65_536, "1024 to 8192 suits small texts"), vocabulary_of_characters)
PLANNED = (
    too_many_characters,
    large_alphabet,
    large_text_by_character,
    vocabulary_rarely_seen,
    vocabulary_dominates,
    vocabulary_ragged,
)
