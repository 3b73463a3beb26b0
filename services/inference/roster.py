"""Who answers to which name: deployments, models, aliases and versions, to the served models behind them.

Knows nothing of where the wishes come from; `deployments` writes it, the servicer reads it.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from octavo.v1.errors_pb2 import Reason
from services.inference.served_model import Key, ServedModel

_ID = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_REFERENCE = re.compile(rf"(deployments/{_ID}|models/{_ID}(@{_ID}|/versions/[1-9][0-9]{{0,8}})?)")


@dataclass(frozen=True, slots=True)
class Target:
    """One version of a deployment and its share of the traffic, relative to its siblings."""

    key: Key
    weight: int


class Roster:
    """The served models, the deployments that route to them and the aliases that these follow."""

    def __init__(self) -> None:
        self.models: dict[Key, ServedModel] = {}
        self.routes: dict[str, tuple[Target, ...]] = {}
        self.pending: dict[str, tuple[Target, ...]] = {}
        """What deployments wait for before their routes change; those without any route yet answer LOADING."""
        self.draining: list[ServedModel] = []
        """What nobody is routed to any more, and is not yet gone."""
        self.aliases: dict[str, str] = {}
        """`models/poet@champion` to `models/poet/versions/3`, as far as deployments follow them."""

    def find(self, reference: str) -> ServedModel:
        """The served model, ready, that answers for `reference`.

        Raises InvalidArgument (no such form of name), NotFound (nothing of this name is wanted here), Unavailable
        (on its way) or FailedPrecondition (refused).
        """
        if not _REFERENCE.fullmatch(reference):
            raise InvalidArgument.field("model", f"{reference!r} {_FORMS}", reason=Reason.REASON_INVALID_NAME)
        if reference.startswith("deployments/"):
            return self._behind(reference)
        candidates = list(self._candidates(self.aliases.get(reference, reference)))
        ready = [served for served in candidates if served.is_ready]
        if ready:
            return max(ready, key=lambda served: (served.key.number, -served.key.precision))
        raise self._refusal(reference, candidates)

    @property
    def present(self) -> dict[str, ServedModel]:
        """Everything that is in memory, or on its way in or out, by the name of its served model."""
        leaving = {served.key.name: served for served in self.draining}
        return leaving | {served.key.name: served for served in self.models.values()}

    def deployments_of(self, key: Key) -> list[str]:
        """The deployments that route to a served model or wait for it, by name."""
        wishes = (*self.routes.items(), *self.pending.items())
        return sorted({name for name, targets in wishes if any(target.key == key for target in targets)})

    def _behind(self, deployment: str) -> ServedModel:
        targets = [target for target in self.routes.get(deployment, ()) if self.models[target.key].is_ready]
        if not targets:
            wishes = (*self.pending.get(deployment, ()), *self.routes.get(deployment, ()))
            raise self._refusal(deployment, [self.models[target.key] for target in wishes])
        weights = [target.weight for target in targets]
        chosen = random.choices(targets, weights)[0] if sum(weights) else targets[0]  # noqa: S311 - traffic, not secrets
        return self.models[chosen.key]

    def _candidates(self, reference: str) -> Iterable[ServedModel]:
        return (served for key, served in self.models.items() if reference in (key.version, key.model))

    def _refusal(self, reference: str, candidates: list[ServedModel]) -> NotFound | Unavailable | FailedPrecondition:
        refused = [served for served in candidates if served.failure]
        if refused:
            served = refused[0]
            return FailedPrecondition(
                Reason.REASON_MODEL_REFUSED,
                f"{served.key.version} cannot be served here: {served.failure}",
                version=served.key.version,
            )
        if candidates:
            return Unavailable(
                Reason.REASON_MODEL_LOADING, f"{reference} is being loaded; try again", retry_after_s=1.0
            )
        return NotFound(
            Reason.REASON_MODEL_NOT_SERVED, f"nothing here serves {reference}; {self._offer()}", model=reference
        )

    def _offer(self) -> str:
        names = [*sorted(self.routes), *sorted({key.version for key, served in self.models.items() if served.is_ready})]
        return f"served are {', '.join(names[:10])}" if names else "create a deployment of it first"


_FORMS = "is not deployments/NAME, models/NAME, models/NAME@ALIAS or models/NAME/versions/NUMBER"
