"""The configuration: one frozen tree, read once, never changed. Keys of the file are the aliases here.

`load_config` builds it. The values that depend on the machine (`runtime_dir`, `socket`, `warm.size`)
have no default in the tree: `auto` is replaced before, so that nobody else has to ask what it means.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from tieredkv.config.units import format_duration, format_size, parse_duration, parse_size

SOCKET_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket (sun_path holds 108 bytes with the final zero)."""

WARM_SIZE_BYTES_MIN: Final = 1 << 20

POLICY_NAMES: Final = (
    "gix",
    "lru",
    "arc",
    "s3fifo",
    "mq",
)
"""Eviction policies that come with the package."""


class HttpAddress(NamedTuple):
    """Where an HTTP server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_address(value: object) -> HttpAddress | None:
    if value is None or isinstance(value, HttpAddress):
        return value
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError("not an address; write HOST:PORT such as 127.0.0.1:9400, or null for none")
    return HttpAddress(host[1:-1] if bracketed else host, int(port))


def _parse_addresses(value: object) -> tuple[HttpAddress, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("not a list; write addresses as [10.0.0.1:9401, 10.0.0.2:9401]")
    found = tuple(map(_parse_address, value))  # pyright: ignore[reportUnknownArgumentType]
    return tuple(address for address in found if address is not None)


def _parse_endpoints(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("not a list; write endpoints as [http://10.0.0.1:2379]")
    endpoints: list[str] = []
    for endpoint in value:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(endpoint, str) or not re.fullmatch(r"https?://[^/]+", endpoint):
            raise ValueError("an endpoint is http://HOST:PORT or https://HOST:PORT")
        endpoints.append(endpoint)
    return tuple(endpoints)


def _parse_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("not a path; write an absolute path")
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ValueError("a relative path means another file in each process; write an absolute path")
    return path


def _parse_optional_path(value: object) -> Path | None:
    return None if value is None else _parse_path(value)


def _parse_path_or_auto(value: object) -> Path | Literal["auto"]:
    return "auto" if value == "auto" else _parse_path(value)


def _parse_socket(value: object) -> Path:
    path = _parse_path(value)
    if len(str(path).encode()) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(
            f"longer than the {SOCKET_PATH_BYTES_MAX} bytes that a Unix socket's path may have; "
            "choose a shorter runtime_dir or socket"
        )
    return path


def _parse_deadline(value: object) -> float:
    seconds = parse_duration(value)
    if not 0 < seconds <= 600:
        raise ValueError("a deadline is more than 0 and at most 10min")
    return seconds


def _parse_half_life(value: object) -> float:
    seconds = parse_duration(value)
    if not 60 <= seconds <= 30 * 86400:
        raise ValueError("must be from 1min to 720h")
    return seconds


def _parse_warm_size(value: object) -> int:
    size_bytes = parse_size(value)
    if size_bytes < WARM_SIZE_BYTES_MIN:
        raise ValueError(f"the warm tier needs at least {format_size(WARM_SIZE_BYTES_MIN)}")
    return size_bytes


def _parse_cold_size(value: object) -> int:
    return parse_size(value)


def _parse_optional_age(value: object) -> float | None:
    if value is None:
        return None
    seconds = parse_duration(value)
    if not 1 <= seconds <= 365 * 86400:
        raise ValueError("must be from 1s to 8760h, or null for no limit")
    return seconds


def _parse_uids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("not a list; write uids as [1000, 1001]")
    uids: list[int] = []
    for uid in value:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(uid, int) or isinstance(uid, bool) or not 0 <= uid < 2**32:
            raise ValueError("a uid is a whole number of at least 0; write uids as [1000, 1001]")
        uids.append(uid)
    return tuple(uids)


def _parse_policy_name(value: object) -> str:
    if isinstance(value, str) and (value in POLICY_NAMES or re.fullmatch(r"[\w.]+:\w+", value)):
        return value
    raise ValueError(f"must be {', '.join(POLICY_NAMES)}, or package.module:name of your own policy")


def _parse_policy_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("not a list; write names as [lru, mq]")
    names: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(map(_parse_policy_name, names))


def _parse_auto_or_count(value: object) -> int | Literal["auto"]:
    return _auto_or_count(value, 1 << 20)


def _parse_auto_or_many(value: object) -> int | Literal["auto"]:
    return _auto_or_count(value, 1 << 28)


def _auto_or_count(value: object, most: int) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"must be auto or a whole number from 1 to {most}")
    return value


_Size = Annotated[
    int,
    BeforeValidator(_parse_warm_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^(auto|\d+(\.\d+)? ?[A-Za-z]*)$"}, {"type": "integer"}]}),
]
_ColdSize = Annotated[
    int,
    BeforeValidator(_parse_cold_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)? ?[A-Za-z]*$"}, {"type": "integer"}]}),
]
_OptionalAge = Annotated[
    float | None,
    BeforeValidator(_parse_optional_age),
    PlainSerializer(lambda seconds: None if seconds is None else format_duration(seconds)),
    WithJsonSchema({"type": ["string", "null"], "pattern": r"^\d+(\.\d+)? ?(us|ms|s|min|h)$"}),
]
_Deadline = Annotated[
    float,
    BeforeValidator(_parse_deadline),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?(us|ms|s|min|h)$"}),
]
_HalfLife = Annotated[
    float,
    BeforeValidator(_parse_half_life),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?(us|ms|s|min|h)$"}),
]
_Directory = Annotated[Path, BeforeValidator(_parse_path), PlainSerializer(str), WithJsonSchema({"type": "string"})]
_Socket = Annotated[Path, BeforeValidator(_parse_socket), PlainSerializer(str), WithJsonSchema({"type": "string"})]
_OptionalPath = Annotated[
    Path | None,
    BeforeValidator(_parse_optional_path),
    PlainSerializer(lambda path: None if path is None else str(path)),
    WithJsonSchema({"type": ["string", "null"]}),
]
_PathOrAuto = Annotated[
    Path | Literal["auto"],
    BeforeValidator(_parse_path_or_auto),
    PlainSerializer(str),
    WithJsonSchema({"type": "string"}),
]
_Address = Annotated[
    HttpAddress | None,
    BeforeValidator(_parse_address),
    PlainSerializer(lambda address: None if address is None else str(address)),
    WithJsonSchema({"type": ["string", "null"], "pattern": r"^.+:\d+$"}),
]
_Addresses = Annotated[
    tuple[HttpAddress, ...],
    BeforeValidator(_parse_addresses),
    PlainSerializer(lambda addresses: [str(address) for address in addresses]),
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": r"^.+:\d+$"}}),
]
_Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_parse_endpoints),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": r"^https?://.+"}}),
]
_Uids = Annotated[
    tuple[int, ...],
    BeforeValidator(_parse_uids),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}}),
]
_PolicyName = Annotated[str, BeforeValidator(_parse_policy_name), WithJsonSchema({"type": "string"})]
_PolicyNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_parse_policy_names),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
_AutoOrMany = Annotated[
    int | Literal["auto"],
    BeforeValidator(_parse_auto_or_many),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1 << 28}]}),
]
_AutoOrCount = Annotated[
    int | Literal["auto"],
    BeforeValidator(_parse_auto_or_count),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1 << 20}]}),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class WarmConfig(_Section):
    """The warm tier: slots in the memory that vineyardd holds."""

    size_bytes: _Size = Field(
        alias="size",
        description="Memory for all pools together. auto = half of what is available, within the "
        "memory limit of the cgroup.",
    )
    namespaces_max: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pools at a time, one per model and layout; each gets an equal part of size.",
    )
    prefault: bool = Field(
        default=True, description="Touch all memory in the background at start, so that no store pays for it."
    )
    ghosts_max: int = Field(
        default=1_000_000,
        ge=0,
        le=100_000_000,
        description="Evicted chunks to remember (for the reasons of misses).",
    )


class ColdConfig(_Section):
    """The cold tier: pages for what leaves the warm tier, here or on other nodes."""

    size_bytes: _ColdSize = Field(
        default=0,
        alias="size",
        description="Memory for cold pages, beside warm.size; what we need to know of them included. 0 = none: "
        "what leaves the warm tier is lost, unless another node has room for it.",
    )
    load_deadline_s: _Deadline = Field(
        default=1.0,
        alias="load_deadline",
        description="How long a request whose turn has come may wait for what is loaded from cold pages or other "
        "nodes; what is not there then is computed.",
    )
    low_free: float = Field(
        default=0.02,
        ge=0,
        le=0.5,
        description="When less of the warm slots than this part can be had at once, the next victims are demoted.",
    )
    high_free: float = Field(
        default=0.05, ge=0, le=0.5, description="Demotion goes on until this part of the warm slots can be had."
    )
    ttl_s: _OptionalAge = Field(
        default=None, alias="ttl", description="Chunks that nobody used for so long leave the cold pages. null = never."
    )


class ClusterConfig(_Section):
    """Other nodes, whose slots and pages are read, and which read ours. Nothing listens unless it is said here."""

    name: str = Field(default="default", min_length=1, max_length=64, description="Nodes of other names are refused.")
    node: str = Field(
        default="auto", min_length=1, max_length=64, description="This node's name in the cluster. auto = the host's."
    )
    listen: _Address = Field(
        default=None, description="HOST:PORT where other nodes connect. null = nowhere; then this node dials them."
    )
    advertise: _Address = Field(default=None, description="HOST:PORT that other nodes dial, when that is not listen's.")
    rpc_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of vineyardd where other nodes read KV. It has no authentication and listens on every "
        "interface: confine it by a network policy. null = other nodes cannot read here.",
    )
    rpc_advertise: _Address = Field(
        default=None, description="HOST:PORT where other nodes read, when it is not rpc_port at this host."
    )
    peers: _Addresses = Field(default=(), description="HOST:PORT of other nodes; this node itself may be among them.")
    etcd: _Texts = Field(
        default=(), description="Endpoints (http://HOST:PORT) of the etcd through which the nodes find each other."
    )
    etcd_prefix: str = Field(default="/tieredkv/", description="Where in etcd.")
    tls_cert: _OptionalPath = Field(default=None, description="This node's certificate (PEM), for mutual TLS.")
    tls_key: _OptionalPath = Field(default=None, description="Its key.")
    tls_ca: _OptionalPath = Field(default=None, description="The private CA that signed all nodes' certificates.")
    secret_file: _OptionalPath = Field(
        default=None, description="File with a secret that all nodes share, instead of TLS. It does not encrypt."
    )

    @property
    def enabled(self) -> bool:
        """Whether there is anything to do with other nodes."""
        return self.listen is not None or bool(self.peers) or bool(self.etcd)


class PolicyConfig(_Section):
    """Which chunks stay when the warm tier is full."""

    name: _PolicyName = Field(
        default="gix",
        description="Eviction policy: gix (learns which chunks come back, and when), lru (least recently used, the "
        "tail of a prefix first), arc, s3fifo, mq (as published), or package.module:name of your own.",
    )
    theta: float = Field(
        default=1.0,
        ge=0,
        le=4,
        description="gix: a new chunk is kept when it promises at least this part of what the chunk promises that "
        "has to leave for it. 0 = keep every new chunk.",
    )
    half_life_s: _HalfLife = Field(
        default=3600.0,
        alias="half_life",
        description="gix: how long until what was learnt counts half.",
    )
    tracked_max: _AutoOrMany = Field(
        default="auto",
        description="gix: evicted chunks whose history is remembered, about 150 bytes each. auto = four times "
        "the slots, and at least 1000000.",
    )
    shadow: bool = Field(
        default=False,
        description="Try other policies on small shadow caches beside this one, and change to one that has clearly "
        "more hits for long.",
    )
    shadow_candidates: _PolicyNames = Field(default=("lru", "mq"), description="The other policies to try.")
    shadow_sample: float = Field(
        default=0.125, gt=0, le=1, description="Part of all conversations that the shadow caches see."
    )
    shadow_requests: int = Field(
        default=5000, ge=2, le=1 << 30, description="Requests that the shadow caches see before a change."
    )


class LimitsConfig(_Section):
    """Bounds on what one peer can hold."""

    engine_share_max: float = Field(
        default=0.5, gt=0, le=1, description="Part of a pool that one engine may pin or lease at a time."
    )
    connections_max: int = Field(default=128, ge=1, le=10_000, description="Connections to the sidecar at a time.")


class EngineConfig(_Section):
    """What the connector inside vLLM does."""

    sidecar: Literal["auto", "external", "private"] = Field(
        default="auto",
        description="external = use the one at socket; private = start one as a child; auto = external "
        "when one answers at start, else private.",
    )
    lookup_deadline_s: _Deadline = Field(
        default=0.05,
        alias="lookup_deadline",
        description="How long a waiting request may wait for the sidecar's answer; then it is a miss.",
    )
    prefetch: Literal["arrival", "scheduled"] = Field(
        default="arrival",
        description="When the sidecar is asked for a request's prefix, and starts to load it: arrival = at once, "
        "while the request is queued; scheduled = when its turn has come (to measure what the former is worth).",
    )
    attach_deadline_s: _Deadline = Field(
        default=5.0,
        alias="attach_deadline",
        description="How long the start of vLLM waits for a sidecar; then vLLM serves without, and retries.",
    )
    chunk_tokens: _AutoOrCount = Field(
        default="auto",
        description="Tokens per chunk, a multiple of vLLM's block size. auto = the smallest that reaches about 1 MiB.",
    )
    lease_chunks: _AutoOrCount = Field(
        default="auto",
        description="Free slots that an engine holds ahead, to store without asking. auto = what two steps of prefill "
        "fill, an eighth of the pool at most.",
    )
    offload_decode: bool = Field(
        default=True, description="Store the KV of generated tokens too, not only that of prompts."
    )


class TraceConfig(_Section):
    """Recording of the access stream, for replay."""

    path: _OptionalPath = Field(
        default=None,
        description="File that gets one JSON line per request (no token and no text in it). null = off.",
    )
    events: bool = Field(
        default=False,
        description="Also write each call to the brain and its outcome, to path with .events.jsonl behind it, "
        "for tieredkv trace verify.",
    )


class MetricsConfig(_Section):
    """Where the sidecar's numbers can be read, beside its Unix socket."""

    http: _Address = Field(default=None, description="HOST:PORT that serves /metrics and /healthz. null = no TCP port.")


class SecurityConfig(_Section):
    """Who may map the warm tier's memory."""

    allowed_uids: _Uids = Field(
        default=(),
        description="Users that may connect, beside the sidecar's own. Each of them can read and write "
        "all KV of the node.",
    )


class VineyarddConfig(_Section):
    """The daemon that holds the memory."""

    binary: _PathOrAuto = Field(
        default="auto", description="The vineyardd executable. auto = that of the vineyard-bdist package."
    )


class Config(_Section):
    """The whole tree."""

    runtime_dir: _Directory = Field(
        description="Directory (0700) of sockets, logs and pool.json. auto = /run/tieredkv for root, else "
        "$XDG_RUNTIME_DIR/tieredkv, else tieredkv-UID in the temporary directory."
    )
    socket: _Socket = Field(description="The sidecar's Unix socket. auto = tieredkv.sock in runtime_dir.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that are logged."
    )
    warm: WarmConfig
    cold: ColdConfig = ColdConfig()
    cluster: ClusterConfig = ClusterConfig()
    policy: PolicyConfig = PolicyConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    trace: TraceConfig = TraceConfig()
    metrics: MetricsConfig = MetricsConfig()
    security: SecurityConfig = SecurityConfig()
    vineyardd: VineyarddConfig = VineyarddConfig()


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    yield "", Config
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{name}.", field.annotation


SECTIONS: Final = tuple(prefix[:-1] for prefix, _ in _sections() if prefix)
"""Names of the sections, in the file's order."""

KEYS: Final = tuple(
    prefix + (field.alias or name)
    for prefix, model in _sections()
    for name, field in model.model_fields.items()
    if name not in SECTIONS
)
"""Dotted paths of all keys that take a value, in the file's order."""

AUTO_KEYS: Final = ("runtime_dir", "socket", "warm.size")
"""Keys whose default depends on the machine."""
