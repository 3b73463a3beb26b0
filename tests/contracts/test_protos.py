"""The contracts obey their rules, and what is generated from them is up to date."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from octavo.addresses import CONTRACTS

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "octavo" / "v1" / "contract.binpb"
BUF = Path(sys.executable).parent / "buf"
METHODS = ("get", "put", "post", "delete", "patch")


def own_files():
    files = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file
    return [file for file in files if file.package == "octavo.v1"]


def comment_of(file, path):
    return next((at.leading_comments.strip() for at in file.source_code_info.location if tuple(at.path) == path), "")


def rpcs():
    """Each RPC of ours as (full name, its descriptor, its comment)."""
    for file in own_files():
        for i, service in enumerate(file.service):
            for j, method in enumerate(service.method):
                yield f"{service.name}.{method.name}", method, comment_of(file, (6, i, 2, j))


def bindings(method):
    """The (verb, template) pairs of an RPC."""
    rule = method.options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        if verb := binding.WhichOneof("pattern"):
            yield verb.upper(), getattr(binding, verb)


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contracts_pass_buf_lint():
    result = run(BUF, "lint", CONTRACT, "--config", "buf.yaml")
    assert result.returncode == 0, result.stdout


def test_the_contracts_are_formatted():
    result = run(BUF, "format", "--diff", "--exit-code", "--path", "protos", ".")
    assert result.returncode == 0, result.stdout


def test_generated_code_equals_the_protos(tmp_path):
    result = run(sys.executable, "protos/generate.py", tmp_path)
    assert result.returncode == 0, result.stderr
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stale = [str(path) for path, content in fresh.items() if (ROOT / path).read_bytes() != content]
    assert not stale, f"run `make protos`: {stale}"
    committed = {
        path.relative_to(ROOT)
        for folder in ("v1", "open_inference")
        for path in (ROOT / "octavo" / folder).glob("*_pb2*")
    }
    assert committed == {path for path in fresh if "_pb2" in path.name}


@pytest.mark.parametrize(("name", "method", "comment"), [pytest.param(*rpc, id=rpc[0]) for rpc in rpcs()])
def test_every_rpc_has_a_binding_or_says_that_it_is_grpc_only(name, method, comment):
    assert comment, f"{name} has no comment"
    found = list(bindings(method))
    if "gRPC only" in comment:
        assert not found
    else:
        assert found, f"{name} has no HTTP binding and does not say why"
        assert all(template.startswith("/api/v1/") for _, template in found)
        assert not method.client_streaming


def test_no_two_bindings_collide():
    seen: dict[tuple[str, str], str] = {}
    for name, method, _ in rpcs():
        for verb, template in bindings(method):
            # Two templates that differ only in the names of their variables match the same paths.
            key = (verb, shape(template))
            assert key not in seen, f"{name} and {seen[key]} both answer {key}"
            seen[key] = name


def shape(template):
    """A template with each variable replaced by the segments it matches."""
    path = ""
    for part in template.replace("}", "{").split("{"):
        path += part if part.startswith("/") or part.startswith(":") or not part else part.partition("=")[2] or "*"
    return path


def test_shape_tells_templates_apart_by_what_they_match():
    assert shape("/api/v1/{name=models/*}/versions:x") == "/api/v1/models/*/versions:x"
    assert shape("/api/v1/{name}") == "/api/v1/*"


def test_every_message_field_and_enum_value_has_a_comment():
    bare = []
    for file in own_files():
        located = {tuple(at.path) for at in file.source_code_info.location if at.leading_comments.strip()}
        for i, message in enumerate(file.message_type):
            bare += undocumented(located, message, (4, i))
        for i, enum in enumerate(file.enum_type):
            bare += [enum.name] if (5, i) not in located else []
            bare += [value.name for j, value in enumerate(enum.value) if (5, i, 2, j) not in located]
    assert not bare


def undocumented(located, message, path):
    if message.options.map_entry:
        return
    if path not in located:
        yield message.name
    yield from (f"{message.name}.{field.name}" for j, field in enumerate(message.field) if (*path, 2, j) not in located)
    for j, nested in enumerate(message.nested_type):
        yield from undocumented(located, nested, (*path, 3, j))


def test_every_field_of_a_message_says_how_it_behaves():
    silent = []
    for file in own_files():
        for message in file.message_type:
            for field in message.field:
                if not field.options.Extensions[field_behavior_pb2.field_behavior]:
                    silent.append(f"{message.name}.{field.name}")
    assert not silent


def test_every_list_pages():
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file:
        pool.Add(file)
    for name, method, _ in rpcs():
        if name.partition(".")[2].startswith("List"):
            request = pool.FindMessageTypeByName(method.input_type.removeprefix("."))
            response = pool.FindMessageTypeByName(method.output_type.removeprefix("."))
            assert {"page_size", "page_token"} <= set(request.fields_by_name), name
            assert "next_page_token" in response.fields_by_name, name
            assert response.fields[0].is_repeated, f"{name}: the page comes first"


def test_every_service_is_hosted_by_exactly_one_program():
    hosted = [service for services in CONTRACTS.values() for service in services]
    assert len(hosted) == len(set(hosted))
    ours = {f"{file.package}.{service.name}" for file in own_files() for service in file.service}
    assert ours == {service for service in hosted if service.startswith("octavo.")}
