from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.tokenizer import END_OF_TEXT, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from octavo.v1.errors_pb2 import Reason

SHAKESPEARE = Path(__file__).parents[3] / ".." / "shared" / "data" / "tinyshakespeare.txt"
PROSE = "To be, or not to be:\n\n  that is   the question — wörth 42 €.\tÇa va? 😀\r\n" * 8
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def characters():
    return Tokenizer.train_characters(PROSE)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe([PROSE], vocab_size=400)


def streamed(tokenizer, ids, **options):
    stream = tokenizer.stream(**options)
    return "".join([*(stream.push(code) for code in ids), stream.finish()])


@given(st.text(st.sampled_from(sorted(set(PROSE)))))
def test_every_text_of_known_characters_comes_back(characters, text):
    ids = characters.encode(text)
    assert len(ids) == len(text)
    assert characters.decode(ids) == text
    assert streamed(characters, ids) == text


@given(UNICODE)
def test_every_text_at_all_comes_back_from_byte_level_bpe(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert streamed(bpe, ids, skip_special=False) == text


@given(st.lists(st.integers(0, 399)))
def test_a_stream_says_what_decode_says_even_of_bytes_that_are_no_text(bpe, ids):
    ids = [code for code in ids if code < bpe.vocab_size]
    assert streamed(bpe, ids, skip_special=False) == bpe.decode(ids)
    assert streamed(bpe, ids, skip_special=True) == bpe.decode(ids, skip_special=True)


@given(st.text(st.sampled_from("é€😀a "), min_size=1))
def test_a_stream_emits_whole_characters_only(bpe, text):
    stream = bpe.stream()
    said = ""
    for code in bpe.encode(text):
        said += stream.push(code)
        assert "\ufffd" not in said
        assert text.startswith(said)
    assert stream.finish() == ""
    assert said == text


def test_bytes_that_never_became_a_character_are_marked_at_the_end(bpe):
    stream = bpe.stream()
    first = bpe.encode("😀")[0]
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


def test_the_vocabulary_of_characters_is_in_code_point_order():
    tokenizer = Tokenizer.train_characters("bca\n")
    assert tokenizer.encode("\nabc") == [0, 1, 2, 3]
    assert tokenizer.vocab_size == 4
    assert tokenizer.is_character_level


def test_unknown_symbols_are_named_with_their_places_and_what_is_known():
    tokenizer = Tokenizer.train_characters("abc ")
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.encode("a bé c…é")
    error = caught.value
    assert error.reason == Reason.REASON_UNKNOWN_SYMBOL
    assert error.metadata == {"symbols": "é…", "positions": "3,6"}
    assert "'é' at 3, '…' at 6" in error.message
    assert "use only ' abc'" in error.message


def test_places_are_counted_over_the_ends_of_texts_before():
    tokenizer = Tokenizer.train_characters("ab", has_end=True)
    assert tokenizer.encode(f"a{END_OF_TEXT}b") == [0, 2, 1]
    with pytest.raises(InvalidArgument, match=f"'x' at {2 + len(END_OF_TEXT)}"):
        tokenizer.encode(f"a{END_OF_TEXT}bx")


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_half_a_surrogate_pair_is_refused_with_its_place(request, kind):
    with pytest.raises(InvalidArgument, match="at 1"):
        request.getfixturevalue(kind).encode("a\ud83d")


@given(st.lists(st.sampled_from([PROSE, " ", "\n\n", "don't", "x" * 999, END_OF_TEXT, "1  2 "]), max_size=400))
def test_a_corpus_in_pieces_has_the_ids_of_the_whole(bpe, parts):
    text = "".join(parts) * 4
    ids = bpe.encode_corpus(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == bpe.encode(text)


def test_a_corpus_of_characters_has_the_ids_of_encode(characters):
    ids = characters.encode_corpus(PROSE)
    assert ids.dtype == np.uint16
    assert ids.tolist() == characters.encode(PROSE)


def test_training_twice_gives_the_same_bytes(bpe):
    assert Tokenizer.train_bpe([PROSE], vocab_size=400).to_bytes() == bpe.to_bytes()


def test_bpe_ends_texts_with_its_first_token_and_learns_merges(bpe):
    assert bpe.end_id == 0
    assert bpe.encode(END_OF_TEXT) == [0]
    assert 257 < bpe.vocab_size <= 400
    assert len(bpe.encode(PROSE)) < len(PROSE.encode()) / 2


@pytest.mark.parametrize("size", [256, (1 << 20) + 1])
def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused(size):
    with pytest.raises(InvalidArgument, match="4096"):
        Tokenizer.train_bpe(["text"], vocab_size=size)


def test_no_text_gives_no_characters():
    with pytest.raises(InvalidArgument, match="0 distinct symbols"):
        Tokenizer.train_characters("")


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("level", ["characters", "bpe"])
def test_transformers_loads_the_files_unchanged_and_agrees(tmp_path, level, has_end):
    ours = (
        Tokenizer.train_characters(PROSE, has_end=has_end)
        if level == "characters"
        else Tokenizer.train_bpe([PROSE], vocab_size=400)
    )
    ours.save(tmp_path, context_length=4096)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(PROSE, add_special_tokens=False) == ours.encode(PROSE)
    assert theirs.decode(ours.encode(PROSE)) == PROSE
    assert theirs.eos_token_id == ours.end_id
    assert theirs.model_max_length == 4096
    assert len(theirs) == ours.vocab_size
    again = Tokenizer.load(tmp_path)
    assert again.to_bytes() == ours.to_bytes()
    assert again.end_token == ours.end_token
    assert again.is_character_level == ours.is_character_level


def test_ids_out_of_range_are_refused_not_dropped(bpe):
    for code in (-1, bpe.vocab_size):
        with pytest.raises(InvalidArgument, match=r"ids\[1\]"):
            bpe.decode([0, code])


def test_a_byte_level_vocabulary_without_a_byte_refuses_texts_with_it():
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(InvalidArgument, match="'é' at 2"):
        tokenizer.encode("abé")


def test_a_byte_level_vocabulary_with_another_pattern_keeps_its_own_cuts(bpe):
    backend = tokenizers.Tokenizer.from_buffer(bpe.to_bytes())
    pattern = pre_tokenizers.Split(tokenizers.Regex(r"\s*[\r\n]+|\s+(?!\S)|\s+|\S+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer = Tokenizer(backend)
    text = PROSE * 2_000
    ids = tokenizer.encode(text)
    assert ids != bpe.encode(text)
    assert tokenizer.encode_corpus(text).tolist() == ids
    assert streamed(tokenizer, ids) == text


def test_a_decoder_that_looks_at_neighbours_streams_what_it_decodes():
    words = ["▁To", "▁be", ",", "▁or", "▁not", "<0xE2>", "<0x82>", "<0xAC>"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: code for code, word in enumerate(words)}, "▁To"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend)
    ids = [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 2, 5]
    assert tokenizer.decode(ids[:-1]) == "To be, or not To be€,"
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert [stream.push(code) for code in ids[:3]] == ["To", " be", ","]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"model":{"type":"BPE"}}', b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_refused(content):
    with pytest.raises(InvalidArgument) as caught:
        Tokenizer.from_bytes(content)
    assert caught.value.reason == Reason.REASON_INVALID_TOKENIZER


@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(characters, data):
    content = bytearray(characters.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        tokenizer = Tokenizer.from_bytes(bytes(content))
    except InvalidArgument:
        return
    assert tokenizer.vocab_size >= 0


@pytest.mark.parametrize("config", [b"{", b'{"eos_token": 7}', b'{"eos_token": "<nowhere>"}'])
def test_a_config_that_does_not_fit_is_refused(bpe, config):
    with pytest.raises(InvalidArgument, match=TOKENIZER_CONFIG_FILE):
        Tokenizer.from_bytes(bpe.to_bytes(), config)


def test_the_end_token_may_be_written_as_an_object(bpe):
    config = b'{"eos_token": {"content": "<|endoftext|>", "lstrip": false}}'
    assert Tokenizer.from_bytes(bpe.to_bytes(), config).end_id == 0


def test_truncation_left_in_a_file_does_not_shorten_texts():
    backend = tokenizers.Tokenizer.from_buffer(Tokenizer.train_characters("abc").to_bytes())
    backend.enable_truncation(2)
    assert Tokenizer.from_bytes(backend.to_str().encode()).encode("abcabc") == [0, 1, 2, 0, 1, 2]


def test_a_bundle_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(NotFound, match=TOKENIZER_FILE):
        Tokenizer.load(tmp_path)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="Tiny Shakespeare is not beside this checkout")
def test_tiny_shakespeare_has_its_65_characters_and_comes_back():
    text = SHAKESPEARE.read_text("utf-8")
    tokenizer = Tokenizer.train_characters(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode_corpus(text).tolist()) == text


@given(UNICODE)
def test_pieces_join_to_the_bytes_of_a_text(bpe, text):
    ids = bpe.encode(text)
    assert b"".join(bpe.pieces[code] for code in ids) == text.encode()
    assert bpe.size_bytes(ids) == len(text.encode())


def test_special_tokens_are_no_text(bpe, characters):
    assert bpe.end_id not in bpe.pieces
    assert bpe.size_bytes([bpe.end_id, *bpe.encode("ö")]) == 2
    assert characters.size_bytes(characters.encode("ö€")) == 5


def test_tokens_that_look_at_their_neighbours_have_no_pieces_but_a_size():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"▁to": 0, "▁be": 1}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.pieces is None
    assert tokenizer.size_bytes([0, 1]) == len("to be")
