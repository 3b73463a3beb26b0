import pytest

from octavo.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.errors_pb2 import Reason
from services.inference.precisions import Preferences
from services.inference.roster import Roster, Target
from services.inference.served_model import Key

FP32, INT8 = Precision.PRECISION_FP32, Precision.PRECISION_INT8


class Stub:
    def __init__(self, key, is_ready=True, failure=None):
        self.key = key
        self.is_available = is_ready
        self.failure = failure
        self.obstacle = None


def roster_of(*models):
    roster = Roster()
    roster.models = {model.key: model for model in models}
    return roster


def key(number, precision=FP32, model="poet"):
    return Key(f"models/{model}/versions/{number}", precision)


def test_a_model_is_answered_by_its_newest_ready_version():
    roster = roster_of(Stub(key(9)), Stub(key(10)), Stub(key(11), is_ready=False), Stub(key(12, model="other")))
    assert roster.find("models/poet").key == key(10)


@pytest.mark.parametrize(("preferred", "answers"), [("fp32", FP32), ("int8,fp32", INT8), ("fp16,int8", INT8)])
def test_a_version_is_answered_in_the_precision_that_the_server_prefers(preferred, answers):
    roster = Roster(Preferences(preferred))
    roster.models = {served.key: served for served in (Stub(key(1, INT8)), Stub(key(1)), Stub(key(2, INT8), False))}
    for reference in ("models/poet", "models/poet/versions/1"):
        assert roster.find(reference).key == key(1, answers)


def test_an_alias_that_a_deployment_follows_is_known():
    roster = roster_of(Stub(key(1)), Stub(key(2)))
    roster.aliases["models/poet@champion"] = "models/poet/versions/1"
    assert roster.find("models/poet@champion").key == key(1)


def test_a_deployment_shares_its_traffic_by_weight():
    roster = roster_of(Stub(key(1)), Stub(key(2)), Stub(key(3)))
    roster.routes["deployments/poet"] = (Target(key(1), 3), Target(key(2), 1), Target(key(3), 0))
    seen = [roster.find("deployments/poet").key.number for _ in range(8)]
    assert seen == [1, 1, 2, 1, 1, 1, 2, 1]


def test_two_targets_that_mean_the_same_version_add_up():
    roster = roster_of(Stub(key(1)), Stub(key(2)))
    roster.routes["deployments/poet"] = (Target(key(1), 1), Target(key(2), 2), Target(key(1), 1))
    assert sorted(roster.find("deployments/poet").key.number for _ in range(4)) == [1, 1, 2, 2]


def test_two_precisions_of_a_version_share_a_deployments_traffic():
    roster = roster_of(Stub(key(1)), Stub(key(1, INT8)))
    roster.routes["deployments/poet"] = (Target(key(1), 1), Target(key(1, INT8), 1))
    assert {roster.find("deployments/poet").key for _ in range(2)} == {key(1), key(1, INT8)}


def test_a_target_may_leave_memory_only_if_all_who_want_it_agree():
    roster = roster_of(Stub(key(1)), Stub(key(2)))
    roster.routes["deployments/a"] = (Target(key(1), 1, on_demand=True), Target(key(2), 0))
    assert roster.may_leave(key(1))
    assert roster.may_leave(key(2))
    assert not roster.is_on_demand(key(2))
    roster.pending["deployments/b"] = (Target(key(1), 1), Target(key(2), 1))
    assert not roster.may_leave(key(1))
    assert not roster.may_leave(key(2))


def test_what_is_not_ready_gets_no_traffic():
    roster = roster_of(Stub(key(1), is_ready=False), Stub(key(2)))
    roster.routes["deployments/poet"] = (Target(key(1), 100), Target(key(2), 0))
    assert {roster.find("deployments/poet").key for _ in range(20)} == {key(2)}


def test_what_is_on_its_way_may_be_asked_for_again():
    roster = roster_of(Stub(key(1), is_ready=False))
    roster.pending["deployments/poet"] = (Target(key(1), 1),)
    for reference in ("deployments/poet", "models/poet", "models/poet/versions/1"):
        with pytest.raises(Unavailable) as caught:
            roster.find(reference)
        assert caught.value.reason == Reason.REASON_MODEL_LOADING
        assert caught.value.retry_after_s


def test_what_was_refused_says_why():
    failure = Internal(Reason.REASON_INTERNAL, "the weights are spoilt")
    roster = roster_of(Stub(key(1), is_ready=False, failure=failure))
    with pytest.raises(FailedPrecondition, match="the weights are spoilt"):
        roster.find("models/poet")


def test_what_nobody_wants_is_not_found_and_the_answer_says_what_there_is():
    roster = roster_of(Stub(key(1)))
    with pytest.raises(NotFound, match="served are models/poet/versions/1"):
        roster.find("models/prose")


@pytest.mark.parametrize(
    "reference",
    ["", "poet", "models/", "models/Poet", "models/poet@", "models/poet/versions/0", "models/poet/versions/x",
     "deployments/poet/", "deployments/poet@a", "models/poet\n", "models/poet-", "models/" + "a" * 64],
)  # fmt: skip
def test_a_name_of_no_known_form_is_refused(reference):
    with pytest.raises(InvalidArgument) as caught:
        Roster().find(reference)
    assert "model" in caught.value.violations
