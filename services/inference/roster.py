"""Who answers to which name: deployments, models, aliases and versions, to the served models behind them.

Knows nothing of where the wishes come from; `deployments` writes it, the servicer reads it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from octavo.v1.errors_pb2 import Reason
from services.inference.precisions import Preferences
from services.inference.served_model import Key, ServedModel
from services.inference.traffic import Turns

_ID = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_REFERENCE = re.compile(rf"(deployments/{_ID}|models/{_ID}(@{_ID}|/versions/[1-9][0-9]{{0,8}})?)")


@dataclass(frozen=True, slots=True)
class Target:
    """One version of a deployment and its share of the traffic, relative to its siblings."""

    key: Key
    weight: int
    on_demand: bool = False

    @property
    def may_leave(self) -> bool:
        """Whether it need not be in memory while nobody asks for it."""
        return self.on_demand or not self.weight


class Roster:
    """The served models, the deployments that route to them and the aliases that these follow."""

    def __init__(self, preferences: Preferences | None = None) -> None:
        self.models: dict[Key, ServedModel] = {}
        self.routes: dict[str, tuple[Target, ...]] = {}
        self.pending: dict[str, tuple[Target, ...]] = {}
        """What deployments wait for before their routes change; those without any route yet answer LOADING."""
        self.draining: list[ServedModel] = []
        """What nobody is routed to any more, and is not yet gone."""
        self.aliases: dict[str, str] = {}
        """`models/poet@champion` to `models/poet/versions/3`, as far as deployments follow them."""
        self._preferences = preferences or Preferences("fp32")
        self._turns: dict[str, Turns[Key]] = {}

    def find(self, reference: str, *, takes_turn: bool = True) -> ServedModel:
        """The served model that answers for `reference`: ready, or out of memory until it is asked for.

        A deployment's weights choose among its versions. A model means its newest version that can answer, and a
        version the precision that the server prefers of those it can answer in. Who only asks about a deployment takes
        no turn: the version with the greatest weight is told, and the shares of the traffic stay exact.

        Raises InvalidArgument (no such form of name), NotFound (nothing of this name is wanted here), Unavailable
        (on its way) or FailedPrecondition (refused).
        """
        if not _REFERENCE.fullmatch(reference):
            raise InvalidArgument.field("model", f"{reference!r} {_FORMS}", reason=Reason.REASON_INVALID_NAME)
        if reference.startswith("deployments/"):
            return self._behind(reference, takes_turn=takes_turn)
        candidates = list(self._candidates(self.aliases.get(reference, reference)))
        available = [served for served in candidates if served.is_available]
        if available:
            return max(available, key=lambda served: (served.key.number, -self._preferences.rank(served.key.precision)))
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

    def forget(self, deployment: str) -> None:
        """Routes no more traffic for a deployment."""
        for table in (self.routes, self.pending, self._turns):
            table.pop(deployment, None)

    def may_leave(self, key: Key) -> bool:
        """Whether everybody who wants a served model can do without it while nobody asks for it."""
        return all(target.may_leave for target in self._wishes(key))

    def is_on_demand(self, key: Key) -> bool:
        """Whether everybody who wants a served model says that it shall be in memory only while it is used."""
        return all(target.on_demand for target in self._wishes(key))

    def _wishes(self, key: Key) -> Iterable[Target]:
        tables = (*self.routes.values(), *self.pending.values())
        return (target for targets in tables for target in targets if target.key == key)

    def _behind(self, deployment: str, *, takes_turn: bool) -> ServedModel:
        targets = [target for target in self.routes.get(deployment, ()) if self.models[target.key].is_available]
        if not targets:
            wishes = (*self.pending.get(deployment, ()), *self.routes.get(deployment, ()))
            raise self._refusal(deployment, [self.models[target.key] for target in wishes])
        weights: dict[Key, int] = {}
        for target in targets:  # two aliases may mean the same version: their shares add up
            weights[target.key] = weights.get(target.key, 0) + target.weight
        if not takes_turn:
            return self.models[max(weights, key=weights.__getitem__)]
        return self.models[self._turns.setdefault(deployment, Turns()).next(weights)]

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
            obstacle = next((f": {served.obstacle}" for served in candidates if served.obstacle), "")
            text = f"{reference} is being loaded; try again{obstacle}"
            return Unavailable(Reason.REASON_MODEL_LOADING, text, retry_after_s=1.0)
        return NotFound(
            Reason.REASON_MODEL_NOT_SERVED, f"nothing here serves {reference}; {self._offer()}", model=reference
        )

    def _offer(self) -> str:
        names = [
            *sorted(self.routes),
            *sorted({key.version for key, served in self.models.items() if served.is_available}),
        ]
        return f"served are {', '.join(names[:10])}" if names else "create a deployment of it first"


_FORMS = "is not deployments/NAME, models/NAME, models/NAME@ALIAS or models/NAME/versions/NUMBER"
