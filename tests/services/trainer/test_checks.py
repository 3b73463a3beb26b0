"""Every check of a plan is triggered once, says field, reason and fix, and is silent when its own fix is applied."""

from __future__ import annotations

import json

import pytest

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import changed
from services.trainer.checks.table import NAMED, NUMBERED, PLANNED, SHAPED, found, mended
from services.trainer.machine import Machine
from services.trainer.plan import plan
from services.trainer.surroundings import Surroundings
from services.trainer.text_facts import TextFacts

MACHINE = {"device": "cpu", "threads": 2, "cores": 2, "has_bf16": True, "memory_bytes": 16 << 30, "cuda_devices": 0}
TEXT = {"train_tokens": 1_003_854, "validation_tokens": 111_540, "vocab_size": 65, "size_bytes": 1_115_394}
BPE, CHARACTERS = "TOKENIZER_KIND_BYTE_BPE", "TOKENIZER_KIND_CHARACTER"
FP32, BF16 = "TRAINING_PRECISION_FP32", "TRAINING_PRECISION_BF16"


def case(**changes):
    """A spec by paths (dots written __), with what is known of `text`, `machine` and `around`."""
    facts = {name: changes.pop(name, {}) for name in ("text", "machine", "around")}
    return {path.replace("__", "."): value for path, value in changes.items()}, facts


ASKED = {
    "size_range": case(size=49),
    "architecture_layers_range": case(architecture__layers=0),
    "architecture_heads_range": case(architecture__heads=-1),
    "architecture_kv_heads_range": case(architecture__kv_heads=0),
    "architecture_width_range": case(architecture__width=1 << 17),
    "architecture_mlp_width_range": case(architecture__mlp_width=0),
    "architecture_context_length_range": case(architecture__context_length=0),
    "tokenizer_vocab_size_range": case(tokenizer__vocab_size=10),
    "vocabulary_of_characters": case(tokenizer__kind=CHARACTERS, tokenizer__vocab_size=300),
    "batch_size_range": case(batch_size=0),
    "microbatch_size_range": case(microbatch_size=-4),
    "processes_range": case(processes=0),
    "processes_share_batch": case(processes=4, batch_size=10),
    "processes_on_one_device": case(processes=2, device="cuda:1"),
    "microbatch_divides_batch": case(batch_size=12, microbatch_size=5),
    "optimizer_matrix_learning_rate_range": case(optimizer__matrix_learning_rate=11.0),
    "optimizer_learning_rate_range": case(optimizer__learning_rate="NaN"),
    "optimizer_weight_decay_range": case(optimizer__weight_decay=-0.1),
    "optimizer_beta1_range": case(optimizer__beta1=1.0),
    "optimizer_beta2_range": case(optimizer__beta2=1.5),
    "optimizer_momentum_range": case(optimizer__momentum=-0.5),
    "optimizer_gradient_clip_range": case(optimizer__gradient_clip=-1.0),
    "ema_decay_range": case(ema_decay=1.0),
    "nothing_learns": case(optimizer__learning_rate=0.0, optimizer__matrix_learning_rate=0.0),
    "schedule_warmup_steps_range": case(schedule__warmup_steps=-1),
    "schedule_cooldown_fraction_range": case(schedule__cooldown_fraction=1.5),
    "schedule_final_fraction_range": case(schedule__final_fraction=-0.5),
    "steps_range": case(steps=0),
    "time_budget_range": case(time_budget="0.5s"),
    "dropout_range": case(dropout=1.0),
    "evaluation_interval_steps_range": case(evaluation_interval_steps=-5),
    "validation_fraction_range": case(validation_fraction=0.9),
    "patience_range": case(early_stopping__patience=0),
    "min_delta_range": case(early_stopping__patience=2, early_stopping__min_delta=-1.0),
    "stopping_metric": case(early_stopping__patience=2, early_stopping__metric=9),
    "target_loss_range": case(target_loss=-1.0),
    "recovery_max_rollbacks_range": case(recovery__max_rollbacks=-1),
    "recovery_learning_rate_factor_range": case(recovery__learning_rate_factor=2.0),
    "prompt_beside_prompts": case(sample__prompt="x", sample__prompts=["y"]),
    "prompts_in_number": case(sample__prompts=["x", "x"]),
    "early_stopping_never_looks": case(early_stopping__patience=2, evaluation_interval_steps=0),
    "checkpoints_interval_steps_range": case(checkpoints__interval_steps=-1),
    "checkpoints_milestone_interval_steps_range": case(checkpoints__milestone_interval_steps=-1),
    "checkpoints_keep_latest_range": case(checkpoints__keep_latest=1),
    "sample_length_range": case(sample__length=10_001),
    "sample_temperature_range": case(sample__temperature=-1.0),
    "prompt_length": case(sample__prompt="x" * 10_001),
    "device_name": case(device="tpu"),
    "threads_range": case(threads=0),
    "price_per_hour_range": case(price_per_hour=-1.0),
    "lora_rank_range": case(lora__rank=0, base_version="models/poet"),
    "lora_alpha_range": case(lora__alpha=-1.0, base_version="models/poet"),
    "lora_dropout_range": case(lora__dropout=1.0, base_version="models/poet"),
    "adapters_without_base": case(lora__rank=8),
    "adapter_targets": case(lora__targets=["q_proj", "q_projection"], base_version="models/poet"),
    "dataset_name": case(dataset="tiny"),
    "model_name": case(model="models/poet/versions/1"),
    "deployment_name": case(deployment="deployments/"),
    "base_version_name": case(base_version="poet"),
    "alias_words": case(aliases=["good", "v3"]),
    "precision_words": case(export_precisions=["int8", "q4"]),
}
SHAPES = {
    "heads_divide_width": case(architecture__heads=3),
    "head_size_multiple": case(architecture__heads=16),
    "kv_heads_divide_heads": case(architecture__heads=4, architecture__kv_heads=3, architecture__width=256),
    "gpt2_groups_no_heads": case(family="MODEL_FAMILY_GPT2", architecture__kv_heads=1),
}
SHORT = {"train_tokens": 500, "validation_tokens": 50, "size_bytes": 550}
PLANS = {
    "context_beyond_text": case(architecture__context_length=512, text=SHORT),
    "too_many_characters": case(tokenizer__kind=CHARACTERS, text={"vocab_size": 70_000}),
    "processes_beyond_devices": case(processes=2, device="cuda", machine={"cuda_devices": 1}),
    "device_absent": case(device="cuda"),
    "text_too_short": case(text={"train_tokens": 900, "validation_tokens": 1}),
    "heads_not_of_64": case(architecture__heads=4),
    "width_ragged": case(architecture__width=144),
    "width_too_narrow": case(architecture__layers=40, architecture__width=128),
    "too_few_layers": case(architecture__layers=1, architecture__width=1024),
    "mlp_width_ragged": case(architecture__mlp_width=300),
    "mlp_width_narrow": case(architecture__mlp_width=96),
    "mlp_width_wide": case(architecture__mlp_width=2048),
    "size_without_effect": case(size=8, architecture__layers=4),
    "small_vocabulary_tied": case(architecture__tie_embeddings=True),
    "large_vocabulary_untied": case(architecture__tie_embeddings=False, text={"vocab_size": 16_384}),
    "few_contexts": case(architecture__context_length=512, text={"train_tokens": 3000}),
    "parameters_beyond_tokens": case(size=24, steps=200),
    "large_alphabet": case(tokenizer__kind=CHARACTERS, text={"vocab_size": 4000}),
    "large_text_by_character": case(tokenizer__kind=CHARACTERS, text={"size_bytes": 32 << 20}),
    "vocabulary_rarely_seen": case(tokenizer__vocab_size=32_768),
    "vocabulary_dominates": case(tokenizer__vocab_size=8192),
    "vocabulary_ragged": case(tokenizer__vocab_size=2000),
    "batch_beyond_text": case(batch_size=16_384),
    "few_steps_an_epoch": case(batch_size=4096),
    "batch_small": case(batch_size=1),
    "many_passes": case(batch_size=64, microbatch_size=1),
    "large_logits": case(batch_size=256, microbatch_size=256, text={"vocab_size": 16_384}),
    "matrix_rate_high": case(optimizer__matrix_learning_rate=0.5),
    "matrix_rate_low": case(optimizer__matrix_learning_rate=1e-4),
    "rate_high": case(optimizer__learning_rate=0.1),
    "rate_low": case(optimizer__learning_rate=1e-6),
    "blocks_frozen": case(optimizer__matrix_learning_rate=0.0),
    "embeddings_frozen": case(optimizer__learning_rate=0.0),
    "decay_strong": case(optimizer__weight_decay=5.0),
    "moments_reversed": case(optimizer__beta1=0.99),
    "second_moment_beyond_run": case(optimizer__beta2=0.9999, steps=1000),
    "momentum_beyond_run": case(optimizer__momentum=0.999, steps=1000),
    "clips_every_step": case(optimizer__gradient_clip=0.001),
    "average_beyond_run": case(ema_decay=0.9999, steps=1000),
    "average_of_one_step": case(ema_decay=0.1),
    "warmup_beyond_end": case(schedule__warmup_steps=500, steps=300),
    "warmup_long": case(schedule__warmup_steps=200, steps=300),
    "cold_start": case(schedule__warmup_steps=0),
    "cooldown_meets_warmup": case(schedule__warmup_steps=100, schedule__cooldown_fraction=0.9, steps=500),
    "no_cooldown": case(schedule__cooldown_fraction=0.0),
    "final_rate_high": case(schedule__final_fraction=0.8),
    "few_steps": case(steps=20),
    "learnt_by_heart": case(steps=20_000, dropout=0.0),
    "dropout_of_fresh_text": case(steps=300, dropout=0.3),
    "text_unseen": case(steps=200),
    "budget_below_setup": case(time_budget="2s"),
    "very_long": case(steps=50_000_000),
    "model_outgrown": case(size=1, steps=100_000),
    "early_stopping_cannot_fire": case(early_stopping__patience=20, steps=1000),
    "target_never_looked_for": case(target_loss=1.5, evaluation_interval_steps=0),
    "target_trivial": case(target_loss=10.0),
    "rollback_in_vain": case(recovery__learning_rate_factor=1.0),
    "improvement_too_large": case(early_stopping__patience=2, early_stopping__min_delta=0.5),
    "evaluation_beyond_end": case(evaluation_interval_steps=10_000, steps=300),
    "evaluations_costly": case(evaluation_interval_steps=1, steps=500),
    "little_validation_text": case(text={"train_tokens": 9000, "validation_tokens": 1000}),
    "validation_below_context": case(
        architecture__context_length=128, text={"train_tokens": 2000, "validation_tokens": 100}
    ),
    "large_validation_part": case(validation_fraction=0.5),
    "never_saved": case(checkpoints__interval_steps=0, size=8),
    "saving_costly": case(checkpoints__interval_steps=1, size=8, batch_size=1),
    "disk_short": case(
        checkpoints__keep_latest=100, checkpoints__interval_steps=100, steps=5000, around={"free_disk_bytes": 60 << 20}
    ),
    "kept_in_vain": case(checkpoints__keep_latest=50, checkpoints__interval_steps=100, steps=1000),
    "milestone_beyond_end": case(checkpoints__milestone_interval_steps=5000, steps=1000),
    "many_milestones": case(checkpoints__milestone_interval_steps=2, steps=1000),
    "rows_cut": case(architecture__context_length=64, text={"row_tokens": 500}),
    "rows_unpacked": case(architecture__context_length=512, data__packing=False, text={"row_tokens": 50}),
    "best_not_kept": case(checkpoints__keep_best=False, steps=5000),
    "prompt_beyond_context": case(sample__prompt="x" * 300),
    "prompt_without_samples": case(sample__prompt="x", sample__length=0),
    "sampling_costly": case(sample__length=10_000, steps=300),
    "sample_of_chance": case(sample__temperature=5.0),
    "cuda_unused": case(device="cpu", size=8, machine={"device": "cuda", "cuda_devices": 1}),
    "threads_beyond_cores": case(threads=64),
    "processes_beyond_cores": case(processes=4),
    "threads_beyond_share": case(threads=4, machine={"cores": 4}, around={"workers": 2}),
    "threads_idle": case(threads=1, machine={"threads": 8, "cores": 8}),
    "bf16_emulated": case(precision=BF16, machine={"has_bf16": False}),
    "fp32_slow": case(precision=FP32, size=8),
    "memory_short": case(size=24, batch_size=256, microbatch_size=256),
    "memory_taken": case(batch_size=128, microbatch_size=128, around={"free_memory_bytes": 500 << 20}),
    "memory_of_neighbours": case(size=12, batch_size=64, microbatch_size=32, around={"workers": 4}),
    "little_text": case(text={"train_tokens": 5000}),
    "one_long_line": case(text={"lines": 1}),
    "adapters_loud": case(base_version="models/poet", lora__alpha=1000.0),
    "adapters_wide": case(base_version="models/poet", lora__rank=200),
    "alias_taken": case(aliases=["champion"], around={"alias_versions": {"champion": "models/poet/versions/3"}}),
    "deployment_of_another": case(deployment="deployments/live", around={"deployed_models": ("models/other",)}),
    "fp32_named": case(export_precisions=["fp32"]),
    "bf16_unmeasured": case(export_precisions=["bf16"]),
    "blocks_ragged": case(export_precisions=["int4"], architecture__width=48, architecture__heads=3),
    "rounding_unjudged": case(export_precisions=["int8"], text={"validation_tokens": 3000}),
}
BY_NAME = {check.name: check for check in (*NAMED, *NUMBERED, *SHAPED, *PLANNED)}


def spec_of(changes):
    return changed(pb.TrainSpec(dataset="datasets/tiny", model="models/poet"), changes)


def planned(spec, facts):
    """The plan with its warnings, for a text that is split and made into tokens as the spec says."""
    text, around = TEXT | facts["text"], dict(facts["around"])
    if spec.HasField("validation_fraction"):
        total = text["train_tokens"] + text["validation_tokens"]
        text["validation_tokens"] = int(total * spec.validation_fraction)
        text["train_tokens"] = total - text["validation_tokens"]
    if spec.tokenizer.vocab_size:
        spec = changed(spec, {"tokenizer.kind": BPE})
        text["vocab_size"] = spec.tokenizer.vocab_size
    elif not spec.tokenizer.kind:
        spec = changed(spec, {"tokenizer.kind": CHARACTERS})
    if spec.deployment != "deployments/live":
        around.pop("deployed_models", None)
    return plan(spec, TextFacts(**text), Machine(**MACHINE | facts["machine"]), around=Surroundings(**around))


def warned(spec, facts):
    return {one.check: one for one in planned(spec, facts).warnings}


def test_every_check_has_a_case_and_a_name_of_its_own():
    checks = (*NAMED, *NUMBERED, *SHAPED, *PLANNED)
    assert len(checks) == len(BY_NAME) > 100
    assert set(BY_NAME) == set(ASKED) | set(SHAPES) | set(PLANS)


@pytest.mark.parametrize("name", [*ASKED])
def test_a_spec_that_is_wrong_by_itself_is_refused_with_a_fix(name):
    check, spec = BY_NAME[name], spec_of(ASKED[name][0])
    ((_, finding),) = found([check], spec)
    assert check.is_error
    assert finding.why
    assert finding.fix
    if finding.change:
        assert list(found([check], mended(spec, finding.change))) == []


@pytest.mark.parametrize("name", [name for name, check in BY_NAME.items() if check.is_error and name not in ASKED])
def test_a_plan_that_is_impossible_is_refused_with_a_fix(name):
    changes, facts = (SHAPES | PLANS)[name]
    spec = spec_of(changes)
    with pytest.raises(InvalidArgument) as refused:
        planned(spec, facts)
    check = BY_NAME[name]
    assert "; " in refused.value.violations[f"job.train.{check.field}"]
    change = mechanical(name, spec, facts)
    if change:
        assert not warned(changed(spec, change), facts).keys() & {name}


def mechanical(name, spec, facts):
    """The change of an error: read from the sentence's own finding."""
    said = []
    check = BY_NAME[name]

    def spy(subject):
        finding = check.find(subject)
        said.append(finding)
        return finding

    spied = type(check)(check.name, check.field, check.meaning, check.is_error, spy)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InvalidArgument):
        for table in ("SHAPED", "PLANNED"):
            known = SHAPED if table == "SHAPED" else PLANNED
            patch.setattr(f"services.trainer.plan.{table}", [spied if one is check else one for one in known])
        planned(spec, facts)
    return said[0].change


@pytest.mark.parametrize("name", [name for name, check in BY_NAME.items() if not check.is_error])
def test_what_may_disappoint_is_said_and_its_fix_silences_it(name):
    changes, facts = PLANS[name]
    spec = spec_of(changes)
    warning = warned(spec, facts)[name]
    assert warning.field.startswith(f"train.{BY_NAME[name].field}") or name in {"few_steps", "very_long"}
    assert warning.description
    assert warning.fix
    change = {
        path.removeprefix("train."): json.loads(value) if value else None for path, value in warning.change.items()
    }
    if change:
        assert name not in warned(changed(spec, change), facts)


def test_nothing_is_said_of_a_spec_that_leaves_everything_to_us():
    assert warned(spec_of({}), case()[1]) == {}


def test_nothing_is_said_of_a_plan_that_is_sent_back_as_a_spec():
    answer = planned(spec_of({}), case()[1])
    again = planned(answer.train, case()[1])
    assert list(again.warnings) == []
    assert again.configuration_id == answer.configuration_id


def test_what_is_wrong_on_every_level_is_said_at_once():
    spec = spec_of({"size": 99, "architecture.heads": 5, "device": "cuda:7", "batch_size": 12, "microbatch_size": 5})
    with pytest.raises(InvalidArgument) as refused:
        planned(spec, case()[1])
    assert set(refused.value.violations) == {
        "job.train.size",
        "job.train.architecture.heads",
        "job.train.device",
        "job.train.microbatch_size",
    }
