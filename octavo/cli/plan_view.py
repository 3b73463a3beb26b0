"""A plan as one reads it before anything runs: what the spec came to, and what may disappoint."""

from rich.console import Group, RenderableType
from rich.text import Text

from octavo.cli import screen, wording
from octavo.v1 import trainer_pb2 as pb


def plan_view(plan: pb.Plan) -> RenderableType:
    """The plan as a grid of facts with its warnings below."""
    parts: list[RenderableType] = [screen.facts_grid(_facts(plan))]
    for warning in plan.warnings:
        parts.append(Text.assemble(("! ", "yellow"), warning.description, (f" ({warning.field})", "dim")))
        if warning.fix:
            parts.append(Text.assemble(("  → ", "yellow"), warning.fix))
    return Group(*parts)


def _facts(plan: pb.Plan) -> list[tuple[str, screen.Cell]]:
    kinds = {"export": _export_facts, "replay": _replay_facts}
    return kinds.get(plan.WhichOneof("resolved") or "", _train_facts)(plan)


def _replay_facts(plan: pb.Plan) -> list[tuple[str, screen.Cell]]:
    spec = plan.replay
    return [
        ("job", f"{spec.job}, {_parameters(plan)}"),
        ("steps", f"{spec.from_step + 1:,} to {spec.to_step:,}"),
        ("memory", f"about {wording.size(plan.memory_bytes)}"),
        ("time", f"about {wording.lasting(wording.seconds(plan.estimated_duration))}"),
    ]


def _export_facts(plan: pb.Plan) -> list[tuple[str, screen.Cell]]:
    spec = plan.export
    return [
        ("version", f"{spec.version}, {_parameters(plan)}"),
        ("precisions", ", ".join(spec.precisions)),
        ("data", f"{wording.compact(spec.dataset)}, {wording.count(plan.dataset_tokens)} characters"),
        ("allowed", f"{spec.max_perplexity_increase:.2%} more perplexity than fp32 has"),
        ("memory", f"about {wording.size(plan.memory_bytes)}"),
        ("time", f"about {wording.lasting(wording.seconds(plan.estimated_duration))}"),
    ]


def _train_facts(plan: pb.Plan) -> list[tuple[str, screen.Cell]]:
    spec = plan.train
    shape = spec.architecture
    family = wording.enum_word(pb.ModelFamily.Name(spec.family), "MODEL_FAMILY_")
    tokenizer = wording.enum_word(pb.TokenizerKind.Name(spec.tokenizer.kind), "TOKENIZER_KIND_")
    vocabulary = shape.vocab_size or spec.tokenizer.vocab_size
    duration_s = wording.seconds(plan.estimated_duration)
    budget_s = wording.seconds(spec.time_budget)
    steps = f"about {plan.total_steps:,}" if budget_s else f"{plan.total_steps:,}"
    return [
        ("model", f"{family}, {shape.layers} blocks of width {shape.width}, {shape.heads} heads, {_parameters(plan)}"),
        ("context", f"{shape.context_length} tokens"),
        ("tokenizer", f"{tokenizer}, {vocabulary:,} entries" if vocabulary else tokenizer),
        ("data", f"{wording.count(plan.dataset_tokens)} tokens, seen {plan.epochs:.2g} times"),
        ("steps", f"{steps} of {wording.count(plan.tokens_per_step)} tokens ({spec.batch_size} sequences)"),
        ("memory", f"about {wording.size(plan.memory_bytes)}, {wording.size(plan.disk_bytes)} of disk"),
        ("time", f"about {wording.lasting(duration_s)}" if duration_s else ""),
        ("cost", f"about {plan.estimated_cost:,.2f}" if plan.HasField("estimated_cost") else ""),
        ("seed", str(spec.seed)),
        ("configuration", plan.configuration_id),
    ]


def _parameters(plan: pb.Plan) -> str:
    return f"{wording.count(plan.parameter_count)} parameters"
