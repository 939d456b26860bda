"""Checks of one machine, for `doctor` and `serve`: each finds ok, warn or fail, and names the remedy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tieredkv.cli.checks import access, machine, software
from tieredkv.cli.checks.check import Check, Verdict
from tieredkv.errors import ConfigError

if TYPE_CHECKING:
    from tieredkv.config import Config

__all__ = ["Check", "Verdict", "run_checks"]


def run_checks(
    config_file: Path | None, given: Mapping[str, object], *, command: Sequence[str] = (), with_cluster: bool = False
) -> list[Check]:
    """All checks, under these flags. `command` is the vLLM command to judge, empty for this environment alone;
    `with_cluster` asks the other nodes too.
    """
    from tieredkv.config import load_config, read_memory

    checks = [software.python(), software.vllm(command), software.hashes(command)]
    try:
        loaded = load_config(config_file, flags=given)
    except ConfigError as error:
        remedy = "correct it; see tieredkv config example"
        return [*checks, *(Check("config", Verdict.FAIL, problem, remedy) for problem in str(error).splitlines())]
    config = loaded.config
    written = sum(not origin.startswith("default") for origin in loaded.sources.values())
    memory = read_memory()
    return [
        *checks,
        Check("config", Verdict.OK, f"{written} keys set, the others at their defaults"),
        software.vineyardd(config.vineyardd.binary),
        machine.shared_memory(),
        machine.prefault(),
        machine.memory(config.warm.size_bytes, loaded.sources["warm.size"], memory),
        machine.cgroup_limit(config.warm.size_bytes, memory),
        machine.memlock(config.warm.size_bytes),
        access.directory("runtime_dir", config.runtime_dir, config.security.allowed_uids),
        access.directory("socket", config.socket.parent, config.security.allowed_uids),
        access.metrics_address(config.metrics.http),
        access.sidecar(config.socket, config.engine.sidecar),
        *(_cluster_checks(config) if with_cluster else ()),
    ]


def _cluster_checks(config: "Config") -> list[Check]:
    from tieredkv.cli.checks.cluster import cluster
    from tieredkv.sidecar.cluster.settings import cluster_settings

    if not config.cluster.enabled:
        remedy = "name the others in cluster.peers or cluster.etcd, and say cluster.listen"
        return [Check("cluster members", Verdict.FAIL, "no cluster is configured", remedy)]
    try:
        return cluster(cluster_settings(config.cluster), config.metrics.http)
    except ConfigError as error:
        return [Check("cluster", Verdict.FAIL, str(error), "correct it; see tieredkv config example")]
