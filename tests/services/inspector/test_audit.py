"""What would run code when loaded is never called clean, however it is dressed; what is data is."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from octavo.errors import DataLoss
from octavo.v1 import inspector_pb2 as pb
from services.inspector.audit import audit

torch = pytest.importorskip("torch")

CLEAN, SUSPICIOUS, MALICIOUS, UNKNOWN = (
    pb.AUDIT_VERDICT_CLEAN,
    pb.AUDIT_VERDICT_SUSPICIOUS,
    pb.AUDIT_VERDICT_MALICIOUS,
    pb.AUDIT_VERDICT_UNKNOWN,
)


class Reduced:
    """Pickles as a call of whatever it is given; never unpickled here."""

    def __init__(self, function, *arguments):
        self.reduction = function, arguments

    def __reduce__(self):
        return self.reduction


@pytest.fixture
def judge(open_files):
    def judged(data, path="weights.bin"):
        return audit(open_files({path: data}), "").files[0]

    return judged


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


STATE = {"a.weight": torch.ones(3, 4), "b": torch.arange(5), "h": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("value", [STATE, torch.nn.Linear(3, 2).state_dict(), {"step": 3, "lr": 0.1, "names": ["x"]}])
def test_what_torch_saves_of_tensors_is_clean(judge, value, is_zip):
    file = judge(saved(value, _use_new_zipfile_serialization=is_zip))
    assert [finding.message for finding in file.findings] == []
    assert (file.status, file.verdict) == (pb.AUDIT_STATUS_COMPLETE, CLEAN)
    assert file.format == (pb.FILE_FORMAT_PYTORCH_ZIP if is_zip else pb.FILE_FORMAT_PICKLE)
    assert file.opcode_counts["STOP"] == (1 if is_zip else 5)
    assert all(item.is_allowed for item in file.imports)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol_are_clean(judge, protocol):
    value = {"a": [1, 2.5, None, True, "ü" * 300, b"x" * 70_000, (1, 2, 3, 4)], "n": 1 << 80, "s": {1, 2}}
    if protocol < 4:
        value.pop("s")
    if protocol < 3:
        value["a"].pop(5)
    file = judge(pickle.dumps(value, protocol), "x.pkl")
    assert (file.status, file.verdict) == (pb.AUDIT_STATUS_COMPLETE, CLEAN)


@pytest.mark.parametrize("protocol", range(6))
def test_an_array_of_numpy_is_clean(judge, protocol):
    file = judge(pickle.dumps(np.arange(4.0), protocol), "x.pkl")
    allowed = {(item.module, item.symbol): item.is_allowed for item in file.imports}
    assert allowed.pop(("numpy._core.numeric", "_frombuffer"), True) in (True, False)
    assert all(allowed.values())


def attack(*parts):
    return b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)


SHORT = lambda text: b"\x8c" + bytes([len(text)]) + text.encode()  # noqa: E731 - a name for an opcode with its text
ID = b"X\x02\x00\x00\x00id\x85R."
ATTACKS = {
    "a call by name": b"\x80\x02cos\nsystem\n" + ID,
    "the oldest protocol under another name": b"cposix\nsystem\n(S'id'\ntR.",
    "a call by stack": attack(b"\x80\x04", SHORT("os"), SHORT("system"), b"\x93", SHORT("id"), b"\x85R."),
    "a name through the memo": attack(
        b"\x80\x04", SHORT("os"), b"\x940", SHORT("system"), b"\x940h\x00h\x01\x93", SHORT("id"), b"\x85R."
    ),
    "a dotted name": attack(b"\x80\x04", SHORT("torch"), SHORT("storage.os.system"), b"\x93", SHORT("id"), b"\x85R."),
    "a call by INST": b"(S'id'\nios\nsystem\n.",
    "a call by OBJ": b"(cos\nsystem\nS'id'\no.",
    "a call by NEWOBJ": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85\x81.",
    "a call by NEWOBJ_EX": b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00id\x85}\x92.",
    "a result thrown away": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R0N.",
    "a call of a call": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "an extension": b"\x80\x02\x82\x01.",
    "attributes of an import": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb0N.",
    "a list that is an import": b"\x80\x02ccollections\nOrderedDict\n(K\x01e0N.",
    "a payload before the break": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R\xff",
    "a payload without an end": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R",
    "a second pickle": pickle.dumps({}) + b"\x80\x02cos\nsystem\n" + ID,
    "a codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    "a name that is no text": b"\x80\x04K\x01K\x02\x93)R.",
    "builtins": b"\x80\x02cbuiltins\neval\n" + ID,
    "a primitive of torch": b"\x80\x02ctorch.utils.collect_env\nrun\n" + ID,
    "a nested pickle": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + ID,
    "an attribute of an allowed package": b"\x80\x02cnumpy\n__builtins__\n.",
    "a stack that runs dry": b"\x80\x02R.",
    "a memo never filled": b"\x80\x02h\x05.",
    "values left over": b"\x80\x02K\x01K\x02.",
    "a frame that ends within a string": attack(
        b"\x80\x04\x95", struct.pack("<Q", 4), b"B", struct.pack("<I", 3), b"abc", b"."
    ),
    "a frame within a frame": attack(b"\x80\x04\x95", struct.pack("<Q", 11), b"\x95", struct.pack("<Q", 2), b"N."),
    "a frame beyond the end": attack(b"\x80\x04\x95", struct.pack("<Q", 99), b"N."),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_is_clean(judge, name):
    for path in ("model.bin", "x.pkl", "weights"):
        file = judge(ATTACKS[name], path)
        assert file.verdict in (SUSPICIOUS, MALICIOUS), path
        assert file.findings, path


@pytest.mark.parametrize("name", [name for name in ATTACKS if "call by" in name or "payload" in name])
def test_a_call_of_the_system_is_malicious_and_named_with_its_place(judge, name):
    file = judge(ATTACKS[name], "x.pkl")
    assert file.verdict == MALICIOUS
    assert file.imports[0].symbol == "system"
    assert file.imports[0].is_called
    assert "os.system" in file.findings[0].message


@pytest.mark.parametrize("name", ["a call by name", "a dotted name", "an extension", "a payload before the break"])
def test_an_attack_inside_an_archive_is_found(judge, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", ATTACKS[name])
        archive.writestr("archive/version", "3\n")
    assert judge(buffer.getvalue()).verdict in (SUSPICIOUS, MALICIOUS)


def test_a_model_with_its_class_is_not_clean(judge):
    file = judge(saved(torch.nn.Linear(2, 2)))
    assert file.verdict == SUSPICIOUS
    assert ("torch.nn.modules.linear", "Linear") in {(item.module, item.symbol) for item in file.imports}


def archive_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


GOOD = {"archive/data.pkl": pickle.dumps({"a": 1}, 2), "archive/version": b"3\n"}


def test_a_plain_archive_is_clean(judge):
    assert judge(archive_of(GOOD)).verdict == CLEAN


@pytest.mark.parametrize(
    "damaged",
    [
        archive_of(GOOD, zipfile.ZIP_DEFLATED),
        archive_of(GOOD) + b"more",
        archive_of(GOOD)[:-1],
        archive_of(GOOD).replace(b"archive/version", b"archive/versiom", 1),
        archive_of(GOOD).replace(b"3\n", b"4\n", 1),
        archive_of(GOOD | {"archive/code/model.py": b"import os"}),
        archive_of(GOOD | {"archive/../evil": b""}),
        archive_of(GOOD | {"archive/data.pkl": GOOD["archive/data.pkl"] + b"more"}),
        archive_of({"archive/data.pkl": b""}),
        archive_of(GOOD).replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00", 1),
    ],
)
def test_an_irregular_archive_is_never_clean(judge, damaged):
    file = judge(damaged)
    assert file.verdict != CLEAN
    assert file.findings


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_checkpoint_is_judged_without_a_crash(judge, changes):
    data = bytearray(saved({"a": torch.ones(2)}))
    for position, value in changes:
        data[position % len(data)] = value
    file = judge(bytes(data))
    assert file.verdict != pb.AUDIT_VERDICT_UNSPECIFIED
    assert file.status != pb.AUDIT_STATUS_UNSPECIFIED


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_noise_after_a_pickles_head_is_judged_without_a_crash(judge, noise):
    file = judge(b"\x80\x04" + noise, "x.pkl")
    assert file.verdict in (CLEAN, SUSPICIOUS, MALICIOUS, UNKNOWN)


def test_endless_opcodes_are_left_open_and_not_called_clean(judge):
    file = judge(b"\x80\x02" + b"N0" * 500_001 + b"N.", "x.pkl")
    assert (file.status, file.verdict) == (pb.AUDIT_STATUS_INCONCLUSIVE, UNKNOWN)


def test_a_bundle_is_clean_and_its_files_are_those_hashed(open_files, bundle):
    result = audit(open_files(bundle | {"data.bin": b""}), "")
    assert (result.status, result.verdict) == (pb.AUDIT_STATUS_COMPLETE, CLEAN)
    assert [file.path for file in result.files] == [*bundle, "data.bin"]


@pytest.mark.parametrize(
    ("path", "data", "verdict"),
    [
        ("config.json", json.dumps({"auto_map": {"AutoModel": "x.Y"}}).encode(), SUSPICIOUS),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ ''.__class__.__mro__ }}"}).encode(), SUSPICIOUS),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages[0]['content'] }}"}).encode(), CLEAN),
        ("config.json", b"{", SUSPICIOUS),
        ("modeling.py", b"print(1)\n", SUSPICIOUS),
        ("README.md", b"can\nbegin\nlike an import", CLEAN),
        ("model.gguf", b"GGUF\x03\0\0\0", UNKNOWN),
        ("x", b"\x00\x01", UNKNOWN),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}", CLEAN),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}x", SUSPICIOUS),
    ],
)
def test_other_files_are_judged_by_what_could_run(judge, path, data, verdict):
    assert judge(data, path).verdict == verdict


def test_external_data_of_a_graph_is_data_and_an_escape_is_an_attack(open_files, make_external):
    def graph(location):
        made = helper.make_graph([], "g", [], [], [make_external("w", TensorProto.FLOAT, (1,), location, 0, 4)])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()

    files = {"m.onnx": graph("m.onnx.data"), "m.onnx.data": b"\x00\xff\xfe\xfd"}
    assert audit(open_files(files), "").verdict == CLEAN
    assert audit(open_files(files | {"m.onnx": graph("/etc/passwd")}), "m.onnx").verdict == MALICIOUS


def test_bytes_that_are_not_those_named_end_the_audit(open_files):
    contents = open_files({"x.txt": b"text"})
    contents.reader("x.txt")._source.data = b"tex!"
    with pytest.raises(DataLoss, match="have the digest"):
        audit(contents, "")
