import pytest

from octavo.errors import InvalidArgument
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters
from services.inference import parameters
from services.inference.sampler import Sampling


def test_a_request_comes_before_the_model_and_the_model_before_the_server():
    defaults = parameters.sampling_defaults({"temperature": 0.7, "top_k": 50, "do_sample": True, "top_p": 7})
    (sampling,) = parameters.samplings(GenerationParameters(top_k=3, seed=1), defaults)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 3, 1.0)
    assert parameters.sampling_defaults({"do_sample": False, "temperature": 0.7}) == {"temperature": 0.0}


def test_without_anything_the_servers_own_values_hold():
    (sampling,) = parameters.samplings(GenerationParameters(seed=0), {})
    assert sampling == Sampling(seed=0)


def test_a_seed_is_drawn_where_there_is_none_and_shared_by_all_completions():
    first, second = parameters.samplings(GenerationParameters(n=2), {})
    assert (first.seed, first.stream, second.stream) == (second.seed, 0, 1)
    assert parameters.samplings(GenerationParameters(), {})[0].seed != first.seed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 100.5])
def test_no_temperature_but_a_possible_one_passes(value):
    request = GenerateRequest(parameters=GenerationParameters(temperature=value))
    with pytest.raises(InvalidArgument):
        parameters.check(request)


def test_the_borders_of_every_range_pass():
    parameters.check(
        GenerateRequest(
            priority=-100,
            parameters=GenerationParameters(
                temperature=100, top_k=0, top_p=1, min_p=1, presence_penalty=-2, n=16, logprobs=0, max_tokens=1
            ),
        )
    )
