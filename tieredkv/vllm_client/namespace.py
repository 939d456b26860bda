"""Namespaces: who may share bytes with whom.

A block hash commits to tokens, LoRA, multimodal inputs and salt, but not to the model, its weights, the
data type, the layout or the parallelism. All of that is fingerprinted here; engines share a pool only
when the fingerprints are equal. What cannot be fingerprinted is not shared.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from tieredkv.tiers.slots import FORMAT
from tieredkv.types import Geometry
from tieredkv.vllm_client.compat import OffloadingConfig, VllmConfig, kv_layout, vllm_version

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def describe_namespace(vllm_config: VllmConfig, config: OffloadingConfig, geometry: Geometry) -> dict[str, str]:
    """All that makes KV bytes interchangeable, readable; equal on the scheduler and on every rank."""
    model = vllm_config.model_config
    parallel = config.parallel
    hf_config: dict[str, Any] = dict(model.hf_config.to_dict())
    hf_config.pop("_name_or_path", None)
    attention = getattr(vllm_config, "attention_config", None)
    return {
        "format": str(FORMAT),
        "vllm": vllm_version(),
        "weights": _weights(model.model, str(model.revision), vllm_config),
        "model_config": _digest(json.dumps(hf_config, sort_keys=True, default=str)),
        "dtype": str(model.dtype),
        "kv_dtype": config.model.dtype,
        "quantization": str(model.quantization),
        "block_tokens": ",".join(str(group.tokens_per_block) for group in config.groups),
        "blocks_per_chunk": str(config.cache.blocks_per_chunk),
        "groups": _digest(json.dumps([group.layer_names for group in config.groups])),
        "body_bytes": str(geometry.body_bytes),
        "chain_tokens": str(geometry.chain_tokens),
        "parallel": (
            f"tp{parallel.tp_size} pp{parallel.pp_size} pcp{parallel.pcp_size} dcp{parallel.dcp_size} "
            f"world{parallel.world_size}"
        ),
        "platform": f"{current_platform.device_type} {current_platform.device_name}",
        "kv_layout": kv_layout(config),
        "attention": str(getattr(attention, "backend", None)),
        "speculative": str(vllm_config.speculative_config is not None),
        "hash": f"{vllm_config.cache_config.prefix_caching_hash_algo} {_hash_seed()}",
    }


def fingerprint(description: dict[str, str]) -> bytes:
    """16 bytes; equal if and only if the descriptions are equal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).digest()[:16]


def unshareable(vllm_config: VllmConfig) -> str:
    """Why this engine's keys mean nothing to another process; empty when they do."""
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    if algorithm.startswith("xxhash") and _hash_seed() == "unset":
        return (
            f"prefix-caching-hash-algo {algorithm} is seeded at random in each process; "
            "set PYTHONHASHSEED or use sha256_cbor"
        )
    return ""


def _hash_seed() -> str:
    seed = os.environ.get("PYTHONHASHSEED", "")
    return seed if seed not in ("", "random") else "unset"


def _weights(model: str, revision: str, vllm_config: VllmConfig) -> str:
    """Names, sizes and times of local weight files; name and revision of a hub model."""
    load_format = str(vllm_config.load_config.load_format)
    if load_format == "dummy":
        return f"dummy seed {vllm_config.model_config.seed}"
    folder = Path(model)
    if not folder.exists():
        return f"{model}@{revision}"
    files = [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _digest(json.dumps(facts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
