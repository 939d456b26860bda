"""Configuration: one strict frozen tree, loaded once from flags, environment, file and vLLM's extra config."""

from tieredkv.config.load import Loaded, load_config
from tieredkv.config.memory import Memory, read_memory
from tieredkv.config.tree import (
    ClusterConfig,
    ColdConfig,
    Config,
    EngineConfig,
    HttpAddress,
    LimitsConfig,
    MetricsConfig,
    PolicyConfig,
    SecurityConfig,
    TraceConfig,
    VineyarddConfig,
    WarmConfig,
)

__all__ = [
    "ClusterConfig",
    "ColdConfig",
    "Config",
    "EngineConfig",
    "HttpAddress",
    "LimitsConfig",
    "Loaded",
    "Memory",
    "MetricsConfig",
    "PolicyConfig",
    "SecurityConfig",
    "TraceConfig",
    "VineyarddConfig",
    "WarmConfig",
    "load_config",
    "read_memory",
]
