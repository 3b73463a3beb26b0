"""The whole life of a model in the client's own words: `octavo up` first, then `python -m examples.quickstart`.

A dataset, a short training, a deployment, and text from it; every call is one of protos/octavo/v1.
"""

import sys
import time

from examples.standard_library import corpus
from octavo.cli import whereabouts
from octavo.client import Client
from octavo.errors import AlreadyExists, OctavoError
from octavo.v1 import datasets_pb2, deployments_pb2, inference_pb2, trainer_pb2


def make_dataset(client: Client, dataset_id: str) -> str:
    """Uploads the corpus and names it; a dataset of that name is taken as it is."""
    blob = client.upload(corpus(400_000).encode())
    request = datasets_pb2.CreateDatasetRequest(dataset_id=dataset_id, dataset=datasets_pb2.Dataset(blob=blob.name))
    try:
        return client.datasets.CreateDataset(request).name
    except AlreadyExists:
        return f"datasets/{dataset_id}"


def train(client: Client, dataset: str, model: str, steps: int) -> list[str]:
    """Trains and follows every event to the end; the names of what the job made."""
    spec = trainer_pb2.TrainSpec(dataset=dataset, model=f"models/{model}", deployment=f"deployments/{model}", size=2)
    spec.steps = steps
    spec.validation_fraction = 0.02
    job = client.trainer.CreateJob(trainer_pb2.CreateJobRequest(job=trainer_pb2.Job(train=spec)))
    for event in client.watch_job(job.name):
        if event.HasField("evaluation"):
            print(f"step {event.evaluation.step}: validation loss {event.evaluation.validation_loss:.3f}")
    ended = client.trainer.GetJob(trainer_pb2.GetJobRequest(name=job.name))
    if ended.state != trainer_pb2.JOB_STATE_SUCCEEDED:
        raise SystemExit(f"{job.name} did not succeed: {ended.error.message}")
    return list(ended.outputs)


def wait_until_ready(client: Client, name: str) -> None:
    """Returns once a server has loaded what is deployed and its conformance vectors hold there."""
    while True:
        deployment = client.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=name))
        if deployment.state == deployments_pb2.DEPLOYMENT_STATE_READY:
            return
        if deployment.state == deployments_pb2.DEPLOYMENT_STATE_FAILED:
            raise SystemExit("; ".join(status.message for status in deployment.statuses))
        time.sleep(0.1)


def main(steps: int) -> None:
    """Prints what each step made."""
    with whereabouts.connect(whereabouts.default_data_dir()) as client:
        dataset = make_dataset(client, "quickstart")
        print("made", ", ".join(train(client, dataset, "quickstart", steps)))
        wait_until_ready(client, "deployments/quickstart")
        request = inference_pb2.StreamGenerateRequest(model="deployments/quickstart", prompt="def ")
        request.parameters.max_tokens = 100
        request.parameters.seed = 7
        for event in client.inference.StreamGenerate(request):
            print(event.chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if sys.argv[1:] else 200)
    except OctavoError as error:
        raise SystemExit(f"{error.reason_name}: {error}") from None
