"""The registry's tables. Every value that no query asks for is a serialized message in a `record` column.

Times are nanoseconds since 1970, digests 64 hexadecimal digits. Plain SQL types only: SQLite and PostgreSQL
make the same tables of them.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()

_ID = String(63)
_DIGEST = String(64)

COUNTERS = Table(
    "counters",
    METADATA,
    # What is counted: `audit`, `deployments`, or a resource name. Rows outlive their resource, so that a number
    # is never given twice.
    Column("name", String(255), primary_key=True),
    Column("last", BigInteger, nullable=False),
)

MODELS = Table(
    "models",
    METADATA,
    Column("model", _ID, primary_key=True),
    Column("description", Text, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("update_time_ns", BigInteger, nullable=False),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("model", _ID, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    # The audit event of its creation: orders the versions of all models.
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("record", LargeBinary, nullable=False),
    # A Version with nothing but its tensors: read for one, left out of lists.
    Column("tensors", LargeBinary, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("update_time_ns", BigInteger, nullable=False),
)

VERSION_FILES = Table(
    "version_files",
    METADATA,
    Column("model", _ID, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("path", String(255), primary_key=True),
    Column("digest", _DIGEST, nullable=False, index=True),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("model", _ID, primary_key=True),
    Column("alias", _ID, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("update_time_ns", BigInteger, nullable=False),
)

LABELS = Table(
    "labels",
    METADATA,
    Column("resource", String(255), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(255), nullable=False),
    Index("labels_by_value", "key", "value"),
)

BLOBS = Table(
    "blobs",
    METADATA,
    Column("digest", _DIGEST, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
)

# Uploads that are complete, for those who ask again because the answer was lost.
UPLOADS = Table(
    "uploads",
    METADATA,
    Column("upload", String(64), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("time_ns", BigInteger, nullable=False, index=True),
)

DATASETS = Table(
    "datasets",
    METADATA,
    Column("dataset", _ID, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("update_time_ns", BigInteger, nullable=False),
)

DATASET_VERSIONS = Table(
    "dataset_versions",
    METADATA,
    Column("dataset", _ID, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", _DIGEST, nullable=False, index=True),
    # A Dataset with format, blob and statistics.
    Column("record", LargeBinary, nullable=False),
)

DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("deployment", _ID, primary_key=True),
    # Its latest change among the changes of all deployments.
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("is_deleted", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("update_time_ns", BigInteger, nullable=False),
)

DEPLOYMENT_REVISIONS = Table(
    "deployment_revisions",
    METADATA,
    Column("deployment", _ID, primary_key=True),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    # A Deployment with nothing but its targets, resolved as they were then.
    Column("record", LargeBinary, nullable=False),
)

# What the present revision of each deployment stands on.
DEPLOYMENT_TARGETS = Table(
    "deployment_targets",
    METADATA,
    Column("deployment", _ID, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("model", _ID, nullable=False),
    Column("alias", _ID, nullable=False),
    Column("number", BigInteger, nullable=False),
    Index("deployment_targets_by_model", "model"),
)

DEPLOYMENT_STATUSES = Table(
    "deployment_statuses",
    METADATA,
    Column("deployment", _ID, primary_key=True),
    Column("server", String(255), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("report_time_ns", BigInteger, nullable=False),
    Column("record", LargeBinary, nullable=False),
)

AUDIT_EVENTS = Table(
    "audit_events",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("action", String(63), nullable=False),
    Column("resource", String(255), nullable=False, index=True),
    Column("actor", String(255), nullable=False),
    # Canonical JSON: the text that the digest covers.
    Column("details", Text, nullable=False),
    Column("digest", _DIGEST, nullable=False),
    Column("previous_digest", _DIGEST, nullable=False),
)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", String(36), primary_key=True),
    # Of the call's name and its arguments.
    Column("digest", _DIGEST, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("time_ns", BigInteger, nullable=False, index=True),
)
