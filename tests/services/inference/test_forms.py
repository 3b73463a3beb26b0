import json
import re

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.errors import InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import Choices, GenerationParameters, StructuredOutput
from services.inference.forms import KEPT, Forms

ASCII = "".join(map(chr, range(32, 127))) + "\n"
TEXT = ['to be or not to be, {"a": [1, 2.5], "to": true} ÄÖÜ 日本語 🙂 ' * 20]


def forms_over(tokenizer):
    ends = set() if tokenizer.end_id is None else {tokenizer.end_id}
    # A model may have more rows than its tokenizer has tokens.
    return Forms(tokenizer, tokenizer.vocab_size + 3, ends)


CHARACTERS = Tokenizer.train_characters(ASCII, has_end=True)
PAIRS = Tokenizer.train_bpe(TEXT, vocab_size=420)
FORMS = {tokenizer: forms_over(tokenizer) for tokenizer in (CHARACTERS, PAIRS)}


def written(tokenizer, form, seed, limit=400):
    """A text of the form by a model without any opinion, and whether it ended by itself."""
    closings = set() if tokenizer.end_id is None else {tokenizer.end_id}
    constraint = form.constraint(closings)
    random, token_ids = np.random.default_rng(seed), []
    while not constraint.is_complete:
        logits = random.normal(0, 1, tokenizer.vocab_size + 3).astype(np.float32)
        constraint.bend(logits)
        token_id = int(logits.argmax())
        assert logits[token_id] > -np.inf
        if token_id in closings:
            break
        token_ids.append(token_id)
        constraint.note(token_id)
        assert constraint.failure is None
        if len(token_ids) == limit:
            return tokenizer.decode(token_ids), False
    return tokenizer.decode(token_ids), True


def schemas(depth=2):
    numbers = st.integers(0, 99)
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span}, numbers, numbers),
        st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 6)),
        st.builds(lambda texts: {"enum": texts}, st.lists(st.sampled_from(["a", "to be", 1, None]), min_size=1)),
        st.just({"type": "string", "pattern": "^[a-c]{1,3}$"}),
    )
    if not depth:
        return leaves
    inner = schemas(depth - 1)
    lists = st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3))
    names = st.dictionaries(st.sampled_from(["a", "to", "be", "x y"]), inner, min_size=1, max_size=3)

    def dictionary(properties):
        required = sorted(properties)[:1]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.one_of(
        leaves, lists, st.builds(dictionary, names), st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
    )


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "[b-d]", "[^a-y]", "[0-9]", "[x0-9]", "to", r"\.", r"\n", " ", "/", '"']),
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"{a}{b}", inner, inner),
        st.builds(lambda a, b: f"(?:{a}|{b})", inner, inner),
        st.builds(lambda a, low, span: f"(?:{a}){{{low},{low + span}}}", inner, st.integers(1, 2), st.integers(0, 2)),
        st.builds(lambda a: f"(?:{a})?x", inner),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("tokenizer", FORMS, ids=["characters", "pairs"])
@settings(max_examples=60, deadline=None)
@given(schemas(), st.integers(0, 2**32))
def test_every_finished_text_satisfies_its_schema(tokenizer, schema, seed):
    form = FORMS[tokenizer].compile(StructuredOutput(json_schema=json.dumps(schema)))
    text, is_finished = written(tokenizer, form, seed)
    assert is_finished
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("tokenizer", FORMS, ids=["characters", "pairs"])
@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, st.integers(0, 2**32))
def test_every_finished_text_matches_its_expression(tokenizer, regex, seed):
    text, is_finished = written(tokenizer, FORMS[tokenizer].compile(StructuredOutput(regex=regex)), seed)
    assert is_finished
    assert re.fullmatch(regex, text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_choice_is_made_whatever_its_characters(texts, seed):
    form = FORMS[PAIRS].compile(StructuredOutput(choices=Choices(texts=texts)))
    assert written(PAIRS, form, seed) in [(text, True) for text in texts]


def test_a_grammar_may_recur():
    grammar = 'root ::= "(" (root | "to") ")" | "be"'
    for seed in range(10):
        text, _ = written(PAIRS, FORMS[PAIRS].compile(StructuredOutput(grammar=grammar)), seed)
        assert re.fullmatch(r"\(*(to|be)\)*", text)
        assert text.count("(") == text.count(")")


def test_white_space_is_what_json_dumps_writes_at_most_unless_the_schema_frees_it():
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 3, "maxItems": 3}
    for seed in range(10):
        text, _ = written(CHARACTERS, FORMS[CHARACTERS].compile(StructuredOutput(json_schema=json.dumps(schema))), seed)
        assert re.fullmatch(r"\[1, ?1, ?1\]", text)
    free = FORMS[CHARACTERS].compile(
        StructuredOutput(json_schema=json.dumps(schema | {"x-guidance": {"whitespace_flexible": True}}))
    )
    assert any("\n" in written(CHARACTERS, free, seed)[0] for seed in range(10))


def test_a_vocabulary_whose_tokens_look_at_their_neighbours_is_constrained_too():
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    tokenizer = Tokenizer(backend, end_token="</s>")
    assert tokenizer.pieces is None
    form = forms_over(tokenizer).compile(StructuredOutput(regex="(to|be){3},"))
    for seed in range(5):
        assert re.fullmatch("(to|be){3},", written(tokenizer, form, seed)[0])


@pytest.mark.parametrize(
    ("wanted", "field", "says", "reason"),
    [
        ({"regex": "(a"}, "regex", "unclosed group", Reason.REASON_INVALID_FIELD),
        ({"regex": "(?=a)b"}, "regex", "look-ahead", Reason.REASON_INVALID_FIELD),
        ({"regex": ""}, "regex", "only the empty text", Reason.REASON_INVALID_FIELD),
        ({"regex": "ab[é-ü]"}, "regex", "use the symbols", Reason.REASON_UNKNOWN_SYMBOL),
        ({"regex": "(a?){5000}a{5000}"}, "regex", "fuel", Reason.REASON_LIMIT_EXCEEDED),
        ({"grammar": 'root ::= "a" | nope'}, "grammar", "'nope' not found", Reason.REASON_INVALID_FIELD),
        ({"grammar": "(" * 9000}, "grammar", "Expected name", Reason.REASON_INVALID_FIELD),
        ({"grammar": 'root ::= "a" (' + "(" * 9000}, "grammar", "is not one", Reason.REASON_INVALID_FIELD),
        ({"grammar": 'root ::= "é" root'}, "grammar", "use the symbols", Reason.REASON_UNKNOWN_SYMBOL),
        ({"json_schema": "[" * 9000}, "json_schema", "is not JSON", Reason.REASON_INVALID_FIELD),
        ({"json_schema": "false"}, "json_schema", "is not a schema", Reason.REASON_INVALID_FIELD),
        ({"json_schema": '{"type": "poem"}'}, "json_schema", "Invalid type: poem", Reason.REASON_INVALID_FIELD),
        ({"json_schema": '{"not": {}}'}, "json_schema", 'Unimplemented keys: ["not"]', Reason.REASON_INVALID_FIELD),
        ({"json_schema": '{"$ref": "http://x/y"}'}, "json_schema", "not present", Reason.REASON_INVALID_FIELD),
        ({"json_schema": '{"const": "é"}'}, "json_schema", "use the symbols", Reason.REASON_UNKNOWN_SYMBOL),
        ({"choices": {"texts": ["a", "é"]}}, "choices.texts[1]", "use the symbols", Reason.REASON_UNKNOWN_SYMBOL),
    ],
)
def test_what_no_text_can_have_is_refused_with_the_reason(wanted, field, says, reason):
    with pytest.raises(InvalidArgument) as caught:
        FORMS[CHARACTERS].compile(StructuredOutput(**wanted))
    assert says in caught.value.violations[f"parameters.structured_output.{field}"]
    assert caught.value.reason == reason


@pytest.mark.parametrize("letter", list('{}":'))
def test_an_object_takes_letters_that_a_vocabulary_may_lack(letter):
    forms = forms_over(Tokenizer.train_characters(ASCII.replace(letter, "")))
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    with pytest.raises(InvalidArgument, match="use the symbols"):
        forms.compile(StructuredOutput(json_schema=json.dumps(schema)))


def test_a_text_without_an_end_token_ends_where_nothing_can_follow():
    tokenizer = Tokenizer.train_characters("ab")
    form = forms_over(tokenizer).compile(StructuredOutput(regex="ab?é?"))
    assert written(tokenizer, form, 0) == ("ab", True)


async def test_forms_last_used_are_kept():
    forms = forms_over(CHARACTERS)
    first = await forms.find(StructuredOutput(regex="a0"))
    for number in range(1, KEPT):
        await forms.find(StructuredOutput(regex=f"a{number}"))
    assert await forms.find(StructuredOutput(regex="a0")) is first
    second = await forms.find(StructuredOutput(regex="a1"))
    await forms.find(StructuredOutput(regex="b"))
    assert await forms.find(StructuredOutput(regex="a1")) is second
    await forms.find(StructuredOutput(regex="c"))
    for number in range(KEPT):
        await forms.find(StructuredOutput(regex=f"d{number}"))
    assert await forms.find(StructuredOutput(regex="a0")) is not first


async def test_a_form_that_takes_too_long_to_compile_is_refused(monkeypatch):
    monkeypatch.setattr("services.inference.forms.COMPILE_LIMIT_S", 0)
    with pytest.raises(InvalidArgument, match="make it simpler") as caught:
        await forms_over(CHARACTERS).find(StructuredOutput(regex="a"))
    assert caught.value.reason == Reason.REASON_LIMIT_EXCEEDED


def test_a_bias_against_all_beginnings_contradicts_and_one_against_some_does_not():
    form = FORMS[CHARACTERS].compile(StructuredOutput(choices=Choices(texts=["ab", "cd"])))
    (a, c) = CHARACTERS.encode("ac")
    form.check(GenerationParameters(logit_bias={a: -100}))
    with pytest.raises(InvalidArgument, match="forbids every token"):
        form.check(GenerationParameters(logit_bias={a: -100, c: -100}))


HOSTILE = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from("(){}[]|*+?.^$\\/\"'abx019,-:=\n \ud83d#%&~<>"), max_size=40),
    st.lists(
        st.sampled_from(["root ::=", '"a"', "[a-z]", "(", ")", "|", "{2,}", "root", "\n", "%import x", "x ::="])
    ).map(" ".join),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just("string"), st.just("#")),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "items", "enum", "anyOf", "$ref", "pattern", "minItems", "const"]
                ),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=8,
    ).map(json.dumps),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["json_schema", "regex", "grammar"]), HOSTILE, st.integers(0, 2**32))
def test_whatever_is_asked_for_is_a_form_or_is_refused_with_its_field(kind, text, seed):
    text = text.encode(errors="replace").decode()
    wanted = StructuredOutput(**{kind: text})
    try:
        form = FORMS[PAIRS].compile(wanted)
    except InvalidArgument as error:
        (field,) = error.violations
        assert field == f"parameters.structured_output.{kind}"
        error.violations[field].encode()
    else:
        assert written(PAIRS, form, seed, limit=40)
