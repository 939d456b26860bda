"""A tiered KV cache for vLLM: GPU (hot), shared memory held by Vineyard (warm)."""

__version__ = "0.1.0"

__all__ = ["__version__"]
