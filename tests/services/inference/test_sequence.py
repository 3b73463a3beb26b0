import codecs

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.formats.tokenizer import Tokenizer
from octavo.v1.inference_pb2 import FinishReason
from services.inference.outbox import Outbox
from services.inference.sampler import Sampling
from services.inference.sequence import Sequence
from services.inference.transcript import Transcript

TOKENIZER = Tokenizer.train_bpe(["to be or not to be, that is the question: ÄÖÜ 日本語 🙂 " * 20], vocab_size=400)
PIECES = TOKENIZER.pieces

# What a model writes: tokens of texts, and any tokens at all, with halves of characters among them.
WRITTEN = st.lists(
    st.one_of(
        st.text(st.sampled_from("abto nÄ日🙂"), max_size=6).map(TOKENIZER.encode),
        st.lists(st.sampled_from(sorted(PIECES)), max_size=3),
    ),
    max_size=8,
).map(lambda parts: [token_id for part in parts for token_id in part])


def sequence_of(token_limit, stops=(), least=0, is_streaming=False):
    return Sequence(
        np.array([0], np.int64),
        sampling=Sampling(),
        token_limit=token_limit,
        limit_reason=FinishReason.FINISH_REASON_MAX_TOKENS,
        endings={TOKENIZER.end_id: FinishReason.FINISH_REASON_END_OF_TEXT},
        transcript=Transcript(TOKENIZER.stream(), stops),
        outbox=Outbox(is_streaming=is_streaming),
        least=least,
    )


def said(token_ids, stops, least, news_at):
    """All that a reader gets who asks for news after the tokens `news_at`: text, tokens, how it ended."""
    sequence, text, sent = sequence_of(len(token_ids), stops, least), "", []
    for number, token_id in enumerate(token_ids):
        if sequence.append(token_id):
            break
        if number in news_at and (news := sequence.news()):
            assert news.text
            text, sent = text + news.text, sent + news.token_ids
    last = sequence.last_news()
    return text + last.text, sent + last.token_ids, last.ending.finish_reason, last.ending.stop


def expected(token_ids, stops, least):
    """The same by decoding from the start after every token."""
    for count in range(1, len(token_ids) + 1):
        before = codecs.getincrementaldecoder("utf-8")("replace").decode(joined(token_ids[: count - 1]))
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(joined(token_ids[:count]))
        new = [(at, stop) for stop in stops if (at := text.find(stop, max(0, len(before) - len(stop) + 1))) >= 0]
        if new and count >= least:
            at, stop = min(new, key=lambda pair: pair[0])
            return text[:at], token_ids[:count], FinishReason.FINISH_REASON_STOP_TEXT, stop
    return joined(token_ids).decode(errors="replace"), token_ids, FinishReason.FINISH_REASON_MAX_TOKENS, ""


def joined(token_ids):
    return b"".join(PIECES[token_id] for token_id in token_ids)


@given(WRITTEN.filter(bool), st.sets(st.integers(0, 60)), st.integers(0, 12), st.data())
def test_streamed_and_whole_text_are_the_decoded_text_cut_at_the_first_stop(token_ids, news_at, least, data):
    text = joined(token_ids).decode(errors="replace")
    cuts = st.tuples(st.integers(0, len(text)), st.integers(1, 4)).map(lambda cut: text[cut[0] : cut[0] + cut[1]])
    stops = data.draw(st.lists(st.one_of(cuts, st.text("abto", max_size=3)).filter(bool), max_size=3))
    wanted = expected(token_ids, stops, least)
    assert said(token_ids, stops, least, news_at) == wanted
    assert said(token_ids, stops, least, set()) == wanted


def test_an_end_token_ends_the_text_and_is_no_part_of_it():
    token_ids = [*TOKENIZER.encode("to be"), TOKENIZER.end_id, *TOKENIZER.encode("or")]
    text, sent, reason, _ = said(token_ids, (), 0, {0, 1})
    assert (text, sent[-1], reason) == ("to be", TOKENIZER.end_id, FinishReason.FINISH_REASON_END_OF_TEXT)


@pytest.mark.parametrize(("least", "kinds"), [(0, 0), (3, 1)])
def test_only_what_is_asked_for_bends(least, kinds):
    assert len(sequence_of(5, least=least).benders(TOKENIZER.vocab_size)) == kinds
