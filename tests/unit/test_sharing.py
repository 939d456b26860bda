"""Who may share with whom, and how large a chunk is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tieredkv.errors import ConfigError
from tieredkv.types import Geometry
from tieredkv.vllm_client.chunking import choose_blocks_per_chunk, geometry_of
from tieredkv.vllm_client.namespace import describe_namespace, fingerprint, unshareable
from tieredkv.vllm_client.spec import loads_refused

GEOMETRY = Geometry(body_bytes=4096, chain_tokens=32, group_strides=(1,))


def vllm_config(model: Path, **changes: Any) -> Any:
    """As much of vLLM's configuration as is fingerprinted."""
    values: dict[str, Any] = {
        "revision": None, "dtype": "torch.float16", "quantization": None, "use_mla": False, "algorithm": "sha256",
        "caching": True, "load_format": "auto", "hf": {"hidden_size": 64}, "speculative": None,
    } | changes  # fmt: skip
    hf_config = SimpleNamespace(to_dict=lambda: dict(values["hf"]))
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(model),
            revision=values["revision"],
            dtype=values["dtype"],
            quantization=values["quantization"],
            use_mla=values["use_mla"],
            hf_config=hf_config,
            seed=0,
        ),
        load_config=SimpleNamespace(load_format=values["load_format"]),
        cache_config=SimpleNamespace(
            prefix_caching_hash_algo=values["algorithm"], enable_prefix_caching=values["caching"]
        ),
        speculative_config=values["speculative"],
        attention_config=SimpleNamespace(backend=None),
    )


def offloading_config(**changes: Any) -> Any:
    """As much of vLLM's normalized offloading configuration as is read."""
    values: dict[str, Any] = {"tp": 1, "blocks": (32,), "per_chunk": 1, "layout": "LBHNC", "kv_dtype": "float16"}
    values |= changes
    groups = tuple(
        SimpleNamespace(tokens_per_block=tokens, layer_names=("layer.0",), group_id=index)
        for index, tokens in enumerate(values["blocks"])
    )
    return SimpleNamespace(
        groups=groups,
        worker_kv_bytes_per_block=1024,
        cache=SimpleNamespace(blocks_per_chunk=values["per_chunk"], tokens_per_hash=16),
        model=SimpleNamespace(name="model", dtype=values["kv_dtype"]),
        parallel=SimpleNamespace(tp_size=values["tp"], pp_size=1, pcp_size=1, dcp_size=1, world_size=values["tp"]),
        kv_cache_layout=values["layout"],
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def namespace(config: Any, offloading: Any) -> bytes:
    return fingerprint(describe_namespace(config, offloading, geometry_of(offloading)))


def test_equal_engines_share_wherever_the_model_lies(model: Path) -> None:
    assert namespace(vllm_config(model), offloading_config()) == namespace(vllm_config(model), offloading_config())
    named = vllm_config(model, hf={"hidden_size": 64, "_name_or_path": "elsewhere"})
    assert namespace(named, offloading_config()) == namespace(vllm_config(model), offloading_config())


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "torch.bfloat16"},
        {"quantization": "fp8"},
        {"algorithm": "sha256_cbor"},
        {"hf": {"hidden_size": 128}},
        {"load_format": "dummy"},
        {"speculative": object()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_shares_nothing(model: Path, change: dict[str, Any]) -> None:
    assert namespace(vllm_config(model, **change), offloading_config()) != namespace(
        vllm_config(model), offloading_config()
    )


@pytest.mark.parametrize(
    "change",
    [{"tp": 2}, {"blocks": (16,)}, {"per_chunk": 2}, {"layout": "BLHNC"}, {"kv_dtype": "fp8"}, {"blocks": (32, 32)}],
    ids=str,
)
def test_another_layout_shares_nothing(model: Path, change: dict[str, Any]) -> None:
    assert namespace(vllm_config(model), offloading_config(**change)) != namespace(
        vllm_config(model), offloading_config()
    )


def test_other_weights_in_the_same_place_share_nothing(model: Path) -> None:
    before = namespace(vllm_config(model), offloading_config())
    (model / "model.safetensors").write_bytes(b"retrained")
    assert namespace(vllm_config(model), offloading_config()) != before


def test_a_hash_seed_is_part_of_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    before = namespace(vllm_config(model), offloading_config())
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert namespace(vllm_config(model), offloading_config()) != before


def test_keys_seeded_at_random_are_not_shared(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert "PYTHONHASHSEED" in unshareable(vllm_config(model, algorithm="xxhash_cbor"))
    assert unshareable(vllm_config(model)) == ""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert unshareable(vllm_config(model, algorithm="xxhash_cbor")) == ""


def test_mla_without_prefix_caching_is_refused(model: Path) -> None:
    assert loads_refused(vllm_config(model, use_mla=True, caching=False))
    assert not loads_refused(vllm_config(model, use_mla=True))
    assert not loads_refused(vllm_config(model, caching=False))


@pytest.mark.parametrize(
    ("chunk_tokens", "block_tokens", "block_bytes", "expected"),
    [
        ("auto", (16,), 2 << 20, 1),  # a block is enough
        ("auto", (16,), 300 << 10, 4),  # the fewest that reach 1 MiB
        ("auto", (16,), 1 << 10, 16),  # a small model stops at 256 tokens
        ("auto", (512,), 1 << 10, 1),  # a block is never split
        ("auto", (16, 64), 64 << 10, 4),  # the largest block counts
        (128, (32,), 1, 4),
        (128, (32, 128), 1, 1),
    ],
)
def test_chunks_are_whole_blocks_of_about_a_mebibyte(
    chunk_tokens: int | str, block_tokens: tuple[int, ...], block_bytes: int, expected: int
) -> None:
    assert choose_blocks_per_chunk(chunk_tokens, block_tokens, block_bytes) == expected


@pytest.mark.parametrize("chunk_tokens", [16, 48, 100])
def test_a_chunk_that_cuts_blocks_is_refused_with_the_next_size(chunk_tokens: int) -> None:
    with pytest.raises(ConfigError, match=rf"engine.chunk_tokens: {chunk_tokens} .* use (32|64|128) or auto"):
        choose_blocks_per_chunk(chunk_tokens, (32,), 1)


def test_groups_with_other_blocks_share_one_chain() -> None:
    geometry = geometry_of(offloading_config(blocks=(32, 96), tp=2))
    assert geometry == Geometry(body_bytes=2048, chain_tokens=32, group_strides=(1, 3))
