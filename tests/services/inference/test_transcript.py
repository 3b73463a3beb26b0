from hypothesis import given
from hypothesis import strategies as st

from octavo.formats.tokenizer import Tokenizer
from services.inference.transcript import Transcript

TOKENIZER = Tokenizer.train_bpe(["to be or not to be, that is the question: ÄÖÜ 日本語 " * 20], vocab_size=400)
TEXTS = st.text(st.sampled_from("abto nÄ日🙂\n"), max_size=40)


def written(text, stops, take_at):
    """What a reader sees, taking the news after the tokens whose numbers are in `take_at`."""
    transcript = Transcript(TOKENIZER.stream(), stops)
    seen = []
    for number, token_id in enumerate(TOKENIZER.encode(text)):
        if transcript.append(token_id):
            break
        if number in take_at:
            seen.append(transcript.take())
    return "".join([*seen, transcript.take_last()]), transcript.stop, seen


@given(TEXTS, st.sets(st.integers(0, 60)))
def test_without_stops_the_pieces_join_to_the_text(text, take_at):
    assert written(text, (), take_at)[0] == text


@given(
    TEXTS,
    st.lists(st.text(st.sampled_from("abto n日🙂"), min_size=1, max_size=4), min_size=1, max_size=3),
    st.sets(st.integers(0, 60)),
)
def test_the_text_ends_before_the_stop_that_is_complete_first(text, stops, take_at):
    seen, stop, _ = written(text, stops, take_at)
    if not any(candidate in text for candidate in stops):
        assert (seen, stop) == (text, "")
    else:
        assert stop in stops
        assert text.startswith(seen + stop)
        assert not any(candidate in seen for candidate in stops)


@given(TEXTS, st.sets(st.integers(0, 60)))
def test_no_piece_but_the_last_holds_half_a_character(text, take_at):
    for piece in written(text, (), take_at)[2]:
        assert "\ufffd" not in piece


def test_a_suffix_that_a_stop_may_begin_with_waits():
    transcript = Transcript(TOKENIZER.stream(), ["\n\nEND"])
    for token_id in TOKENIZER.encode("to be\n\nE"):
        assert not transcript.append(token_id)
    assert transcript.take() == "to be"
    assert transcript.take_last() == "\n\nE"


def test_half_a_character_at_the_end_becomes_the_replacement_character():
    transcript = Transcript(TOKENIZER.stream())
    transcript.append(TOKENIZER.encode("Ж")[0])
    assert transcript.take() == ""
    assert transcript.take_last() == "\ufffd"


def test_among_stops_at_one_place_the_first_given_counts():
    transcript = Transcript(TOKENIZER.stream(), ["ab", "abc"])
    ended = [transcript.append(token_id) for token_id in TOKENIZER.encode("ab")]
    assert ended[-1]
    assert transcript.stop == "ab"
