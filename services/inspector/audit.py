"""Decides whether an artifact is safe to load, file by file. What could not be analysed is not called clean.

Every byte is read and hashed once, so that the verdict is about exactly the bytes that the registry names.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from octavo.errors import DataLoss, InvalidArgument
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.inspector import findings, graph_summary, zip_members
from services.inspector.artifacts import ArtifactFile
from services.inspector.contents import Contents
from services.inspector.pickle_audit import LimitReached, PickleAudit, Unsound
from services.inspector.reader import Reader

Status = pb.AuditStatus
Verdict = pb.AuditVerdict

_STREAM_BYTES: Final = 1 << 20
_PICKLE_LIMIT_BYTES: Final = 64 << 20
_JSON_LIMIT_BYTES: Final = 32 << 20
_PICKLES_LIMIT: Final = 10_000
_PROGRAMS: Final = frozenset({".py", ".pyc", ".sh", ".ps1", ".bat", ".js", ".so", ".dll", ".exe"})
_PROSE: Final = frozenset({".md", ".txt", ".json", ".jinja", ".yaml", ".yml", ".csv"})
# torch/serialization.py: five pickles, the first of which is this number, then raw storages.
_LEGACY_MAGIC: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES: Final = 5
_TENSOR_MEMBERS: Final = re.compile(
    r"[^/]+/(?:data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id)"
)
# Jinja that reaches for attributes of Python objects: github.com/huggingface/transformers, chat templates.
_TEMPLATE_ESCAPE: Final = re.compile(r"__\w+__|\battr\s*\(|\bimport\b|\bcycler\b|\bjoiner\b|\blipsum\b")

_SEVERITY: Final = {
    Verdict.AUDIT_VERDICT_CLEAN: 0,
    Verdict.AUDIT_VERDICT_UNKNOWN: 1,
    Verdict.AUDIT_VERDICT_SUSPICIOUS: 2,
    Verdict.AUDIT_VERDICT_MALICIOUS: 3,
}
_REFUSE: Final = "do not load it"


def audit(contents: Contents, path: str) -> pb.ArtifactAudit:
    """The audit of all files, or of one when `path` is not empty."""
    started = time.perf_counter()
    artifact = contents.artifact
    files = [artifact.file(path)] if path else artifact.files
    audits = [_audit_file(contents, file) for file in files]
    result = pb.ArtifactAudit(artifact=artifact.name, files=audits)
    result.status = max((item.status for item in audits), default=Status.AUDIT_STATUS_COMPLETE)
    result.verdict = max(
        (item.verdict for item in audits), key=_SEVERITY.__getitem__, default=Verdict.AUDIT_VERDICT_CLEAN
    )
    result.elapsed.FromNanoseconds(int((time.perf_counter() - started) * 1e9))
    return result


def _audit_file(contents: Contents, file: ArtifactFile) -> pb.FileAudit:
    reader = contents.reader(file.path)
    result = pb.FileAudit(path=file.path, digest=_digest(reader, file))
    try:
        result.format = contents.format(file.path)
        if result.format == pb.FILE_FORMAT_UNKNOWN and file.path in contents.external_paths():
            result.format = pb.FILE_FORMAT_EXTERNAL_DATA
        _AUDITS.get(result.format, _audit_unknown)(contents, result)
    except InvalidArgument as error:
        _fail(result, "malformed-file", error.message)
    except Unsound as error:
        _fail(result, error.code, str(error))
    except LimitReached as error:
        _leave_open(result, "limit-reached", str(error))
    notes = findings.ranked(result.findings)
    del result.findings[:]
    result.findings.extend(notes)
    return result


def _digest(reader: Reader, file: ArtifactFile) -> str:
    """The digest of the bytes; DataLoss when it is not the one that names them."""
    digest = hashlib.sha256()
    for block in reader.stream(0, reader.size_bytes, _STREAM_BYTES):
        digest.update(block)
    found = f"sha256:{digest.hexdigest()}"
    if found != file.digest:
        raise DataLoss(
            Reason.REASON_BLOB_CORRUPT,
            f"{file.path or file.digest}: its bytes have the digest {found}, not {file.digest}",
            path=file.path,
        )
    return found


def _settle(result: pb.FileAudit, verdict: pb.AuditVerdict.ValueType, notes: Iterable[pb.InspectionFinding]) -> None:
    """Everything was analysed, and this is the verdict."""
    result.status = Status.AUDIT_STATUS_COMPLETE
    result.verdict = verdict
    result.findings.extend(notes)


def _fail(result: pb.FileAudit, code: str, message: str) -> None:
    """The content is broken: libraries may have run a part of it before they notice, so it is never clean."""
    result.status = Status.AUDIT_STATUS_FAILED
    worst = max(result.verdict, Verdict.AUDIT_VERDICT_SUSPICIOUS, key=lambda item: _SEVERITY.get(item, 0))
    result.verdict = worst
    result.findings.append(findings.error(code, result.path, message, _REFUSE))


def _leave_open(result: pb.FileAudit, code: str, message: str) -> None:
    """A part could not be analysed: nothing can be said, unless something was already found."""
    result.status = Status.AUDIT_STATUS_INCONCLUSIVE
    if _SEVERITY.get(result.verdict, 0) == 0:
        result.verdict = Verdict.AUDIT_VERDICT_UNKNOWN
    result.findings.append(findings.warning(code, result.path, message, "treat it as unsafe"))


def _audit_safetensors(contents: Contents, result: pb.FileAudit) -> None:
    contents.header(result.path)
    _settle(result, Verdict.AUDIT_VERDICT_CLEAN, ())


def _audit_onnx(contents: Contents, result: pb.FileAudit) -> None:
    notes = list(graph_summary.judge(contents, result.path, graph_summary.summarize(contents, result.path)))
    codes = {note.code for note in notes}
    verdict = Verdict.AUDIT_VERDICT_CLEAN
    if codes & {"custom-operators", "external-data-missing", "external-data-out-of-range"}:
        verdict = Verdict.AUDIT_VERDICT_SUSPICIOUS
    if codes & {"external-data-escapes", "external-data-nested"}:
        verdict = Verdict.AUDIT_VERDICT_MALICIOUS
    _settle(result, verdict, notes)


def _audit_json(contents: Contents, result: pb.FileAudit) -> None:
    reader = contents.reader(result.path)
    if reader.size_bytes > _JSON_LIMIT_BYTES:
        raise LimitReached(f"JSON of {reader.size_bytes} bytes; at most {_JSON_LIMIT_BYTES} are read")
    try:
        content = json.loads(reader.read(0, reader.size_bytes))
    except (ValueError, RecursionError) as error:
        _fail(result, "malformed-file", f"it is not JSON: {error}")
        return
    notes = []
    if isinstance(content, dict) and "auto_map" in content:
        message = "auto_map asks the loader to import code that comes with the model"
        notes.append(findings.warning("remote-code", result.path, message, "load it with trust_remote_code off"))
    template = json.dumps(content.get("chat_template", "")) if isinstance(content, dict) else ""
    if _TEMPLATE_ESCAPE.search(template):
        message = "its chat template reaches for the insides of Python objects"
        notes.append(findings.warning("template-escape", result.path, message, "do not render it"))
    verdict = Verdict.AUDIT_VERDICT_SUSPICIOUS if notes else Verdict.AUDIT_VERDICT_CLEAN
    _settle(result, verdict, notes)


def _audit_external_data(contents: Contents, result: pb.FileAudit) -> None:
    """Bytes that a graph points into: nothing loads them as code."""
    _settle(result, Verdict.AUDIT_VERDICT_CLEAN, ())


def _audit_text(contents: Contents, result: pb.FileAudit) -> None:
    """Text is no code, unless it is a program, or a pickle of the oldest protocol, which is plain text, too."""
    suffix = PurePosixPath(result.path).suffix.lower()
    if suffix in _PROGRAMS:
        note = findings.warning("program", result.path, "it is a program, which data does not need", _REFUSE)
        _settle(result, Verdict.AUDIT_VERDICT_SUSPICIOUS, [note])
        return
    reader = contents.reader(result.path)
    record = PickleAudit()
    try:
        record.read(_pickle_bytes(reader, 0, reader.size_bytes))
    except Unsound:
        # A sentence may begin like an import; a file that calls itself prose is not unpickled.
        if suffix in _PROSE or not record.imports:
            _settle(result, Verdict.AUDIT_VERDICT_CLEAN, ())
            return
        _take_over(result, [record])
        raise
    _take_over(result, [record])
    _settle(result, record.verdict(), ())


def _audit_pickle(contents: Contents, result: pb.FileAudit) -> None:
    reader = contents.reader(result.path)
    data = _pickle_bytes(reader, 0, reader.size_bytes)
    record = PickleAudit()
    try:
        _read_pickles(record, data)
    finally:
        _take_over(result, [record])
    _settle(result, record.verdict(), ())


def _read_pickles(record: PickleAudit, data: bytes) -> None:
    """Every pickle to the end of the file; raw bytes may follow only where torch's old format has them."""
    is_legacy = data[2 : 2 + len(_LEGACY_MAGIC)] == _LEGACY_MAGIC
    position = count = 0
    while position < len(data) and not (is_legacy and count == _LEGACY_PICKLES):
        position += record.read(data[position:])
        count += 1
        if count > _PICKLES_LIMIT:
            raise LimitReached(f"more than {_PICKLES_LIMIT} pickles in a row")


def _audit_pytorch(contents: Contents, result: pb.FileAudit) -> None:
    reader = contents.reader(result.path)
    members = zip_members.read_members(reader)
    notes = [
        findings.warning(
            "member-unexpected", f"{result.path}: {member.name[:200]}", "no file of tensors has such a member", _REFUSE
        )
        for member in members
        if not _TENSOR_MEMBERS.fullmatch(member.name)
    ]
    records = []
    try:
        for member in members:
            zip_members.verify(reader, member)
            if member.name.endswith(".pkl"):
                record = PickleAudit(member.name)
                records.append(record)
                data = _pickle_bytes(reader, member.offset, member.size_bytes)
                if record.read(data) != len(data):
                    raise Unsound("pickle-trailing", f"bytes follow the pickle in {member.name[:200]}")
    finally:
        _take_over(result, records)
    verdicts = [record.verdict() for record in records]
    if notes or not records:
        verdicts.append(Verdict.AUDIT_VERDICT_SUSPICIOUS)
    _settle(result, max(verdicts, key=_SEVERITY.__getitem__), notes)


def _pickle_bytes(reader: Reader, offset: int, size_bytes: int) -> bytes:
    if size_bytes > _PICKLE_LIMIT_BYTES:
        raise LimitReached(f"a pickle of {size_bytes} bytes; at most {_PICKLE_LIMIT_BYTES} are analysed")
    return reader.read(offset, size_bytes)


def _take_over(result: pb.FileAudit, records: Iterable[PickleAudit]) -> None:
    """What was seen of the pickles, even where they break off: a payload runs before the break."""
    for record in records:
        result.findings.extend(record.findings(result.path))
        result.imports.extend(record.imports)
        for opcode, count in record.opcode_counts.items():
            result.opcode_counts[opcode] += count
        result.verdict = max(result.verdict, record.verdict(), key=lambda item: _SEVERITY.get(item, 0))


def _audit_unknown(contents: Contents, result: pb.FileAudit) -> None:
    name = pb.FileFormat.Name(result.format).removeprefix("FILE_FORMAT_")
    _leave_open(result, "format-not-analysed", f"files of the format {name} are not analysed")


_AUDITS: Final = {
    pb.FILE_FORMAT_SAFETENSORS: _audit_safetensors,
    pb.FILE_FORMAT_ONNX: _audit_onnx,
    pb.FILE_FORMAT_JSON: _audit_json,
    pb.FILE_FORMAT_TEXT: _audit_text,
    pb.FILE_FORMAT_EXTERNAL_DATA: _audit_external_data,
    pb.FILE_FORMAT_PICKLE: _audit_pickle,
    pb.FILE_FORMAT_PYTORCH_ZIP: _audit_pytorch,
}
