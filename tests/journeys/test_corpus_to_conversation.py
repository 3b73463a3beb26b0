"""From a text file to a served, inspected model, through every program, over gRPC and over HTTP."""

import hashlib
import json
import time

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from octavo.errors import OctavoError
from octavo.v1 import datasets_pb2, deployments_pb2, inference_pb2, inspector_pb2, registry_pb2, trainer_pb2

PROMPT = "The value of"


def import_dataset(client, corpus):
    blob = client.upload(corpus)
    assert blob.name == f"blobs/sha256:{hashlib.sha256(corpus.read_bytes()).hexdigest()}"
    request = datasets_pb2.CreateDatasetRequest(dataset=datasets_pb2.Dataset(blob=blob.name), dataset_id="prose")
    return client.datasets.CreateDataset(request)


def specification(**changes):
    small = {"dataset": "datasets/prose", "model": "models/poet", "threads": 1, "steps": 40, "batch_size": 8}
    spec = trainer_pb2.TrainSpec(**(small | changes))
    spec.tokenizer.kind = trainer_pb2.TOKENIZER_KIND_CHARACTER
    spec.architecture.layers, spec.architecture.heads, spec.architecture.kv_heads = 2, 2, 2
    spec.architecture.width, spec.architecture.context_length = 64, 64
    return spec


def train(client, spec):
    """Runs a job to its end; answers it and its events."""
    job = client.trainer.CreateJob(trainer_pb2.CreateJobRequest(job=trainer_pb2.Job(train=spec)))
    events = list(client.watch_job(job.name))
    job = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=job.name))
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job.error
    return job, events


def await_ready(client, name):
    request = deployments_pb2.GetDeploymentRequest(name=name)
    deadline_s = time.monotonic() + 60
    while (deployment := client.deployments.GetDeployment(request)).state != deployments_pb2.DEPLOYMENT_STATE_READY:
        assert deployment.state != deployments_pb2.DEPLOYMENT_STATE_FAILED, deployment.statuses
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def generation(**parameters):
    return inference_pb2.GenerationParameters(max_tokens=40, temperature=0.8, seed=7, **parameters)


@pytest.mark.slow
def test_a_text_becomes_a_model_that_answers_the_same_everywhere(suites, corpus):
    suite = suites()
    client = suite.client
    assert import_dataset(client, corpus).statistics.characters == 200_000

    job, events = train(client, specification(deployment="deployments/poet", aliases=["champion"]))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    losses = [event.evaluation.validation_loss for event in events if event.WhichOneof("event") == "evaluation"]
    assert losses[-1] < losses[0]
    version = client.registry.ResolveVersion(registry_pb2.ResolveVersionRequest(reference="models/poet@champion"))
    assert version.name == "models/poet/versions/1"
    assert version.lineage.job == job.name
    assert MessageToDict(version.parity), "the proof is part of the version"

    await_ready(client, "deployments/poet")
    request = inference_pb2.GenerateRequest(model="deployments/poet", prompt=PROMPT, parameters=generation())
    whole = client.inference.Generate(request)
    text = whole.completions[0].text
    assert whole.usage.completion_tokens == 40
    assert streamed(client) == text
    assert over_http(suite) == text

    inspected = client.inspector.InspectArtifact(inspector_pb2.InspectArtifactRequest(artifact="models/poet@champion"))
    assert inspected.parameter_count == version.parameter_count
    suite.stop()


def streamed(client):
    request = inference_pb2.StreamGenerateRequest(model="models/poet", prompt=PROMPT, parameters=generation())
    events = list(client.inference.StreamGenerate(request))
    assert events[-1].WhichOneof("event") == "done"
    return "".join(event.chunk.text for event in events)


def over_http(suite):
    """The same completion as server-sent events."""
    url = f"{suite.gateway}/api/v1/models/poet:streamGenerate"
    body = {"prompt": PROMPT, "parameters": {"maxTokens": 40, "temperature": 0.8, "seed": "7"}}
    text = ""
    with httpx.stream("POST", url, json=body, headers={"accept": "text/event-stream"}, timeout=30) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data:"):
                text += json.loads(line[5:]).get("chunk", {}).get("text", "")
    return text


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_everything_is_killed(suites, corpus):
    suite = suites()
    client = suite.client
    import_dataset(client, corpus)
    train(client, specification(deployment="deployments/poet"))
    await_ready(client, "deployments/poet")
    request = inference_pb2.GenerateRequest(model="deployments/poet", prompt=PROMPT, parameters=generation())
    before = client.inference.Generate(request).completions[0].text
    running = client.trainer.CreateJob(
        trainer_pb2.CreateJobRequest(job=trainer_pb2.Job(train=specification(steps=150, evaluation_interval_steps=30)))
    )
    watched = client.watch_job(running.name)
    seen = []
    for event in watched:
        seen.append(event)
        if event.WhichOneof("event") == "checkpoint":
            break
    suite.kill_everything()

    client = suites().client
    assert client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name="datasets/prose")).version == 1
    events = list(client.watch_job(running.name, seen[-1].sequence))
    assert events[0].sequence == seen[-1].sequence + 1
    job = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=running.name))
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job.error
    versions = client.registry.ListVersions(registry_pb2.ListVersionsRequest(parent="models/poet")).versions
    assert [version.name for version in versions] == ["models/poet/versions/2", "models/poet/versions/1"]
    await_ready(client, "deployments/poet")
    assert client.inference.Generate(request).completions[0].text == before


def refusal(call):
    with pytest.raises(OctavoError) as caught:
        call()
    return caught.value


def problem(response):
    """The error of an HTTP answer: status, reason, the fields that were wrong."""
    error = response.json()["error"]
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    assert "Traceback" not in response.text
    fields = [violation["field"] for violation in details.get("BadRequest", {}).get("fieldViolations", [])]
    return response.status_code, details["ErrorInfo"]["reason"], fields


@pytest.mark.slow
def test_bad_input_gets_a_clear_answer_on_both_roads(suites, corpus, tmp_path):
    suite = suites()
    client = suite.client
    import_dataset(client, corpus)
    train(client, specification(deployment="deployments/poet"))
    await_ready(client, "deployments/poet")
    with httpx.Client(base_url=f"{suite.gateway}/api/v1", timeout=30) as http:

        def generate(**body):
            return problem(http.post("/deployments/poet:generate", json=body))

        def plan(**spec):
            train_spec = {"dataset": "datasets/prose", "model": "models/poet", **spec}
            return problem(http.post("/jobs:plan", json={"job": {"train": train_spec}}))

        def dataset(content):
            blob = client.upload(content).name
            return problem(http.post("/datasets?datasetId=other", json={"blob": blob}))

        assert dataset(b"")[:2] == (400, "DATASET_INVALID")
        assert dataset("Bücher".encode("latin-1"))[:2] == (400, "DATASET_INVALID")
        assert problem(http.get("/datasets/none"))[:2] == (404, "DATASET_NOT_FOUND")
        assert plan(dataset="datasets/none")[:2] == (404, "DATASET_NOT_FOUND")
        assert plan(architecture={"width": 100, "heads": 3})[0] == 400
        assert plan(architecture={"contextLength": 1_000_000})[0] == 400
        assert problem(http.get("/models/nobody"))[:2] == (404, "MODEL_NOT_FOUND")
        assert problem(http.get("/models/poet@nobody:resolve"))[:2] == (404, "ALIAS_NOT_FOUND")
        assert problem(http.get("/models/poet/versions/99"))[:2] == (404, "VERSION_NOT_FOUND")
        assert problem(http.get("/models/..%2Fx"))[:2] == (400, "INVALID_NAME")
        assert problem(http.post("/models?modelId=..%2Fx", json={}))[:2] == (400, "INVALID_NAME")
        assert generate(prompt="日本")[0] == 400
        assert generate(prompt="a" * 500)[0] == 400
        assert generate(prompt="")[0] == 400
        assert generate(prompt="a", parameters={"temperature": -1})[2] == ["parameters.temperature"]
        assert generate(prompt="a", parameters={"topP": 7})[2] == ["parameters.top_p"]
        assert generate(prompt="a", parameters={"maxTokens": -5})[2] == ["parameters.max_tokens"]
        assert generate(prompt="a", parameters={"temprature": 1})[:2] == (400, "UNKNOWN_FIELD")
        assert generate(prompt="a", parameters={"minTokens": 9, "maxTokens": 8})[2] == ["parameters.min_tokens"]
        form = "parameters.structured_output"
        impossible = json.dumps({"type": "integer", "minimum": 2, "maximum": 1})
        assert generate(prompt="a", parameters={"structuredOutput": {"regex": "("}})[2] == [f"{form}.regex"]
        assert generate(prompt="a", parameters={"structuredOutput": {"jsonSchema": impossible}}) == (
            400,
            "INVALID_FIELD",
            [f"{form}.json_schema"],
        )
        assert problem(http.post("/deployments/nobody:generate", json={"prompt": "a"}))[0] == 404
        assert http.get("/models").json()["totalSize"] == 1
        assert http.get("/datasets").json()["totalSize"] == 1

    tiny = client.upload(b"To be or not to be").name
    request = datasets_pb2.CreateDatasetRequest(dataset=datasets_pb2.Dataset(blob=tiny), dataset_id="tiny")
    client.datasets.CreateDataset(request)
    spec = specification(dataset="datasets/tiny")
    error = refusal(lambda: client.trainer.CreateJob(trainer_pb2.CreateJobRequest(job=trainer_pb2.Job(train=spec))))
    assert "context_length" in str(error) or "characters" in str(error)
