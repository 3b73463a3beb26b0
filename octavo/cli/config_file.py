"""A train spec as a YAML file: fields as the contract names them, told by line where one is wrong.

Durations read `60s` or `5min`, enum values as their last words (`gpt2`), names in their short forms. What is written
from a spec reads back as the same spec.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict, ParseError

from octavo.cli import short_names, spec_fields
from octavo.cli.durations import duration
from octavo.cli.failure import Refusal
from octavo.v1 import trainer_pb2 as pb

_DURATION = Duration.DESCRIPTOR.full_name
_NAMES: dict[str, Callable[[str], str]] = {
    "dataset": short_names.dataset,
    "model": short_names.model,
    "deployment": short_names.deployment,
    "base_version": short_names.version,
}
# Follows from the tokenizer; nobody can ask for it.
_ANSWERED_ONLY = "octavo.v1.Architecture.vocab_size"


def read(path: Path) -> pb.TrainSpec:
    """The spec in a file. Raises Refusal with everything that is wrong, each with its line."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is no text: byte {error.start} is not UTF-8", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise Refusal(f"{path} is no YAML: {_one_line(error)}") from None
    reader = _Reader(path)
    content = reader.message(root, pb.TrainSpec.DESCRIPTOR, "") if root is not None else {}
    if reader.faults:
        count = len(reader.faults)
        raise Refusal(
            "\n".join(reader.faults) if count > 1 else reader.faults[0],
            "`octavo jobs plan FILE` says what a file comes to, every field set",
        )
    return _spec(path, content)


def write(spec: pb.TrainSpec) -> str:
    """The fields of a spec that are set, as YAML that `read` takes for the same spec."""
    return yaml.safe_dump(_content(spec), sort_keys=False, allow_unicode=True, width=110)


def _spec(path: Path, content: dict[str, Any]) -> pb.TrainSpec:
    try:
        for name, complete in _NAMES.items():
            if name in content:
                content[name] = complete(content[name])
        return ParseDict(content, pb.TrainSpec())
    except (typer.BadParameter, ParseError, ValueError) as error:
        raise Refusal(f"{path}: {error}") from None


@dataclass
class _Reader:
    """Walks the nodes of a file beside the fields of a message, and gathers what is wrong."""

    path: Path
    faults: list[str] = field(default_factory=list)

    def message(self, node: yaml.Node, descriptor: Descriptor, above: str) -> dict[str, Any]:
        """The content of a message, as protobuf's JSON mapping has it."""
        if not isinstance(node, yaml.MappingNode):
            where = above.rstrip(".") or "the file"
            self._say(node, f"{where} needs fields below it, `name: value` each; there is {_kind(node)}")
            return {}
        content: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            known = descriptor.fields_by_name.get(name)
            if known is None:
                self._say(key, _unknown(name, descriptor, above))
            elif name in content:
                self._say(key, f"{above}{name} is there twice")
            elif not _is_empty(value):
                content[name] = self._value(value, known, f"{above}{name}")
        self._check_alternatives(node, descriptor, content)
        return content

    def _check_alternatives(self, node: yaml.Node, descriptor: Descriptor, content: dict[str, Any]) -> None:
        for group in descriptor.oneofs:
            both = [one.name for one in group.fields if one.name in content]
            if len(both) > 1:
                self._say(node, f"{' and '.join(both)} exclude one another; leave one out")

    def _value(self, node: yaml.Node, known: FieldDescriptor, path: str) -> object:
        if known.is_repeated:
            if not isinstance(node, yaml.SequenceNode):
                self._say(node, f"{path} needs a list, such as [a, b]; there is {_kind(node)}")
                return []
            return [self._single(one, known, f"{path}[{index}]") for index, one in enumerate(node.value)]
        return self._single(node, known, path)

    def _single(self, node: yaml.Node, known: FieldDescriptor, path: str) -> object:
        inner = known.message_type
        if inner and inner.full_name != _DURATION:
            return self.message(node, inner, f"{path}.")
        if not isinstance(node, yaml.ScalarNode):
            self._say(node, f"{path} needs one value; there is {_kind(node)}")
            return None
        try:
            if inner:
                return duration(str(node.value)).ToJsonString()
            return spec_fields.single(known, str(node.value))
        except typer.BadParameter as error:
            told = str(error).removeprefix(f"--set {known.name}={node.value}: ").removeprefix(f"{known.name} ")
            self._say(node, f"{path}: {told}")
            return None

    def _say(self, node: yaml.Node, text: str) -> None:
        self.faults.append(f"{self.path}:{node.start_mark.line + 1}: {text}")


def _unknown(name: str, descriptor: Descriptor, above: str) -> str:
    """That there is no such field, and which was meant: one beside it, or one of that name elsewhere."""
    paths = [spec_fields.dotted(path) for path in spec_fields.paths(pb.TrainSpec.DESCRIPTOR)]
    elsewhere = [path for path in paths if path.rpartition(".")[2] == name]
    names = [one.name for one in descriptor.fields]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    beside = [f"{above}{one}" for one in near]
    far = difflib.get_close_matches(name, [path.rpartition(".")[2] for path in paths], n=1, cutoff=0.6)
    distant = [path for path in paths if far and path.rpartition(".")[2] == far[0]]
    meant = elsewhere or beside or distant
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"there are {', '.join(names)}"
    return f"there is no field {above}{name}; {hint}"


def _content(message: Any) -> dict[str, Any]:
    return {
        known.name: [_plain(known, one) for one in value] if known.is_repeated else _plain(known, value)
        for known, value in _set_fields(message)
    }


def _set_fields(message: Any) -> Iterator[tuple[FieldDescriptor, Any]]:
    for known, value in message.ListFields():
        if known.full_name != _ANSWERED_ONLY:
            yield known, value


def _plain(known: FieldDescriptor, value: Any) -> object:
    if known.message_type:
        return value.ToJsonString() if known.message_type.full_name == _DURATION else _content(value)
    if known.enum_type:
        names = known.enum_type.values_by_number
        prefix = known.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        return names[value].name.removeprefix(prefix).lower() if value in names else value
    return value


def _is_empty(node: yaml.Node) -> bool:
    """`field:` with nothing behind it leaves the field out."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a group of fields"
    return "a list" if isinstance(node, yaml.SequenceNode) else repr(str(node.value)[:40])


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
