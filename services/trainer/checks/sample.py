"""The text that is sampled on the way."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, fault, warning, within

_LONGEST_PROMPT = 10_000
_MOST_PROMPTS = 16
_MOST_SAMPLING = 0.5
_SAMPLING = 0.1


@fault("sample.prompt", "At most 10,000 characters.")
def prompt_length(spec: pb.TrainSpec) -> Finding | None:
    prompt = spec.sample.prompt
    if len(prompt) <= _LONGEST_PROMPT:
        return None
    why = f"has {len(prompt)} characters; at most {_LONGEST_PROMPT}"
    return Finding(why, {"sample.prompt": None}, f"send the last {_LONGEST_PROMPT} of it")


@fault("sample.prompt", "One prompt or several, not both.")
def prompt_beside_prompts(spec: pb.TrainSpec) -> Finding | None:
    sample = spec.sample
    if not (sample.prompt and sample.prompts):
        return None
    return Finding("excludes prompts", {"sample.prompt": None}, "put it among them")


@fault("sample.prompts", "At most 16, each once and of 1 to 10,000 characters.")
def prompts_in_number(spec: pb.TrainSpec) -> Finding | None:
    prompts = list(spec.sample.prompts)
    for index, prompt in enumerate(prompts):
        rest = [one for at, one in enumerate(prompts) if at != index]
        if not 0 < len(prompt) <= _LONGEST_PROMPT:
            why = f"has {len(prompt)} characters; 1 to {_LONGEST_PROMPT}"
            return Finding(why, {"sample.prompts": rest}, field=f"sample.prompts[{index}]")
        if prompt in prompts[:index]:
            return Finding("is there twice", {"sample.prompts": rest}, field=f"sample.prompts[{index}]")
    if len(prompts) <= _MOST_PROMPTS:
        return None
    why = f"has {len(prompts)} prompts; at most {_MOST_PROMPTS}"
    return Finding(why, {"sample.prompts": prompts[:_MOST_PROMPTS]})


@warning("sample.prompt", "The prompt fits into the context.")
def prompt_beyond_context(case: Case) -> Finding | None:
    prompt, context = case.spec.sample.prompt, case.shape.context_length
    if case.spec.tokenizer.kind != pb.TOKENIZER_KIND_CHARACTER or len(prompt) <= context:
        return None
    why = f"of {len(prompt)} characters the model sees the last {context}"
    return Finding(why, {"sample.prompt": prompt[-context:].replace("\n", " ")})


@warning("sample.length", "A prompt is there to be gone on from.")
def prompt_without_samples(case: Case) -> Finding | None:
    if not case.spec.sample.prompt or case.spec.sample.length:
        return None
    return Finding("0 samples nothing, so that sample.prompt is never used", {"sample.length": None})


@warning("sample.length", "Sampling takes less time than training.")
def sampling_costly(case: Case) -> Finding | None:
    sampling_s = case.looks * case.times.sample_s
    if not case.has("sample.length") or sampling_s <= max(1.0, _MOST_SAMPLING * case.training_s):
        return None
    length = int(case.spec.sample.length * _SAMPLING * case.training_s / sampling_s)
    why = f"{case.looks} samples of {case.spec.sample.length} tokens take about {sampling_s:.0f} s"
    return Finding(f"{why} beside {case.training_s:.0f} s of training", {"sample.length": length})


@warning("sample.temperature", "Samples show the model, not chance.")
def sample_of_chance(case: Case) -> Finding | None:
    temperature = case.spec.sample.temperature
    if temperature <= 2:
        return None
    return Finding(f"{temperature:g} samples nearly at random", {"sample.temperature": 0.8})


ASKED = (
    within("sample.length", 0, 10_000, "200 is usual, 0 samples nothing"),
    within("sample.temperature", 0, 100, "0 takes the likeliest token, 0.8 is usual"),
    prompt_length,
    prompt_beside_prompts,
    prompts_in_number,
)
PLANNED = (prompt_beyond_context, prompt_without_samples, sampling_costly, sample_of_chance)
