"""How large a chunk is: whole blocks, big enough to be worth a copy."""

from math import gcd
from typing import Final

from tieredkv.errors import ConfigError
from tieredkv.types import Geometry
from tieredkv.vllm_client.compat import OffloadingConfig

CHUNK_BYTES_WANTED: Final = 1024 * 1024
CHUNK_TOKENS_MAX: Final = 256
"""`auto` stops here: a chunk is reused whole or not at all, so a small model must not get huge ones."""


def choose_blocks_per_chunk(chunk_tokens: int | str, block_tokens: tuple[int, ...], block_bytes: int) -> int:
    """Blocks per chunk; `block_bytes` is what one block holds on all ranks.

    "auto" takes the fewest that reach CHUNK_BYTES_WANTED without passing CHUNK_TOKENS_MAX.
    """
    largest = max(block_tokens)
    if chunk_tokens == "auto":
        wanted = -(-CHUNK_BYTES_WANTED // max(block_bytes, 1))
        return max(1, min(wanted, CHUNK_TOKENS_MAX // largest))
    assert isinstance(chunk_tokens, int)
    if chunk_tokens < largest or chunk_tokens % largest:
        raise ConfigError(
            f"engine.chunk_tokens: {chunk_tokens} is no multiple of vLLM's block of {largest} tokens; "
            f"use {max(1, -(-chunk_tokens // largest)) * largest} or auto"
        )
    return chunk_tokens // largest


def geometry_of(config: OffloadingConfig) -> Geometry:
    """Shape of the chunks, the same on the scheduler and on every rank."""
    chunk_tokens = [group.tokens_per_block * config.cache.blocks_per_chunk for group in config.groups]
    chain_tokens = gcd(*chunk_tokens)
    return Geometry(
        body_bytes=rank_bytes(config) * config.parallel.world_size,
        chain_tokens=chain_tokens,
        group_strides=tuple(tokens // chain_tokens for tokens in chunk_tokens),
    )


def rank_bytes(config: OffloadingConfig) -> int:
    """Room of one rank in a slot's body: an upper bound for a chunk of any group."""
    per_block: int = config.worker_kv_bytes_per_block
    blocks: int = config.cache.blocks_per_chunk
    return per_block * blocks
