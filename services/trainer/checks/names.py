"""What the job reads and what it leaves: names, aliases, deployments and precisions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.formats.bundle import PRECISIONS
from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Check, Finding, fault, warning

ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
PATTERNS = {
    "version": (
        rf"models/{ID}(/versions/[1-9][0-9]{{0,17}}|@{ID})?",
        "`models/poet`, `models/poet/versions/3` or `models/poet@champion`",
    ),
    "dataset": (rf"datasets/{ID}(/versions/[1-9][0-9]{{0,17}})?", "`datasets/tiny` or `datasets/tiny/versions/2`"),
    "model": (f"models/{ID}", "`models/poet`"),
    "deployment": (f"deployments/{ID}", "`deployments/poet`"),
    "job": (f"jobs/{ID}", "`jobs/j-1`"),
}
MAX_ALIASES = 16
_MEASURED_TOKENS = 4096
_BLOCKED = frozenset({"int4", "int8_weights"})


def name_fault(pattern: str, value: str, *, is_required: bool) -> Finding | None:
    """What is wrong with a resource name of the kind `pattern`."""
    expression, example = PATTERNS[pattern]
    if not value:
        return Finding("is missing", {}, f"name one, such as {example}") if is_required else None
    if re.fullmatch(expression, value):
        return None
    return Finding(f"{value[:90]!r} is not a name", {}, f"write one such as {example}")


def alias_fault(aliases: Sequence[str]) -> Finding | None:
    """What is wrong with aliases: too many, or one that is no word, or named twice."""
    if len(aliases) > MAX_ALIASES:
        return Finding(f"has {len(aliases)} aliases; at most {MAX_ALIASES}", {"aliases": list(aliases[:MAX_ALIASES])})
    for index, alias in enumerate(aliases):
        rest = [one for at, one in enumerate(aliases) if at != index]
        if not re.fullmatch(ID, alias) or alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
            why = f"{alias[:70]!r} must be 1 to 63 of a-z 0-9 -, begin with a letter, and be neither `latest` nor `v1`"
            return Finding(why, {"aliases": rest}, field=f"aliases[{index}]")
        if alias in aliases[:index]:
            return Finding(f"{alias} is named twice", {"aliases": rest}, field=f"aliases[{index}]")
    return None


def precision_fault(field: str, words: Sequence[str], known: Sequence[str]) -> Finding | None:
    """What is wrong with a list of precisions: one that there is not, or named twice."""
    for index, word in enumerate(words):
        kept = [one for at, one in enumerate(words) if at != index]
        if word not in known:
            return Finding(f"{word[:40]!r} is none of {', '.join(known)}", {field: kept}, field=f"{field}[{index}]")
        if word in words[:index]:
            return Finding(f"{word} is named twice", {field: kept}, field=f"{field}[{index}]")
    return None


def _named(field: str, pattern: str, meaning: str, *, is_required: bool = False) -> Check[pb.TrainSpec]:
    def find(spec: pb.TrainSpec) -> Finding | None:
        return name_fault(pattern, getattr(spec, field), is_required=is_required)

    return Check(f"{field}_name", field, meaning, True, find)


@fault("aliases", "At most 16 words, each once, none of which reads like a version.")
def alias_words(spec: pb.TrainSpec) -> Finding | None:
    return alias_fault(list(spec.aliases))


@fault("export_precisions", "Precisions that can be exported, each once.")
def precision_words(spec: pb.TrainSpec) -> Finding | None:
    return precision_fault("export_precisions", list(spec.export_precisions), PRECISIONS)


@warning("aliases", "An alias that names another version is moved knowingly.")
def alias_taken(case: Case) -> Finding | None:
    held = {alias: case.around.alias_versions.get(alias) for alias in case.spec.aliases}
    taken = [alias for alias, version in held.items() if version]
    if not taken:
        return None
    words = ", ".join(f"{alias} names {held[alias]}" for alias in taken)
    free = [alias for alias in case.spec.aliases if alias not in taken]
    why = f"{words} and moves to the new version, whichever is better"
    return Finding(why, {"aliases": free}, "move it once you have compared them")


@warning("deployment", "A deployment goes on serving the model that it serves.")
def deployment_of_another(case: Case) -> Finding | None:
    others = [name for name in case.around.deployed_models if name != case.spec.model]
    if not others:
        return None
    why = f"{case.spec.deployment} serves {', '.join(others)} now and will serve {case.spec.model} alone"
    own = f"deployments/{case.spec.model.removeprefix('models/')}"
    return Finding(why, {"deployment": own if own != case.spec.deployment else None})


def _without(case: Case, unwanted: frozenset[str]) -> dict[str, list[str]]:
    return {"export_precisions": [word for word in case.spec.export_precisions if word not in unwanted]}


@warning("export_precisions", "fp32 is always written.")
def fp32_named(case: Case) -> Finding | None:
    if "fp32" not in case.spec.export_precisions:
        return None
    return Finding("fp32 is written in any case", _without(case, frozenset({"fp32"})))


@warning("export_precisions", "What is written can be measured.")
def bf16_unmeasured(case: Case) -> Finding | None:
    if "bf16" not in case.spec.export_precisions:
        return None
    why = "ONNX Runtime's CPU provider cannot run bf16, so it is written and not measured here"
    change = _without(case, frozenset({"bf16"}))
    return Finding(why, change, "ask for fp16, which can be measured")


@warning("export_precisions", "Blocks of weights fill the matrices that are rounded in them.")
def blocks_ragged(case: Case) -> Finding | None:
    asked = _BLOCKED.intersection(case.spec.export_precisions)
    blocks = {"int4": 32, "int8_weights": 64}
    ragged = frozenset(word for word in asked if case.shape.width % blocks[word])
    if not ragged:
        return None
    words = " and ".join(f"{word} rounds {blocks[word]} inputs together" for word in sorted(ragged))
    why = f"{words}; a width of {case.shape.width} leaves the last block part empty"
    return Finding(why, _without(case, ragged), "choose a width that is a multiple of 64")


@warning("export_precisions", "There is enough held-out text to judge what rounding loses.")
def rounding_unjudged(case: Case) -> Finding | None:
    rounded = frozenset(case.spec.export_precisions) - {"fp32"}
    if not rounded or case.text.validation_tokens >= _MEASURED_TOKENS:
        return None
    why = f"a loss of 1 % cannot be told from chance on {case.text.validation_tokens} held-out tokens"
    return Finding(why, _without(case, rounded), "give more text")


ASKED = (
    _named("dataset", "dataset", "`datasets/tiny` or one of its versions.", is_required=True),
    _named("model", "model", "`models/poet`, without a version.", is_required=True),
    _named("deployment", "deployment", "`deployments/poet`, or empty."),
    _named("base_version", "version", "`models/poet/versions/3`, `models/poet@champion` or `models/poet`."),
    alias_words,
    precision_words,
)
PLANNED = (alias_taken, deployment_of_another, fp32_named, bf16_unmeasured, blocks_ragged, rounding_unjudged)
