"""The demo's models: repeatable, scaled so that KV matters, and readable as safetensors."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tieredkv.demo.model import WEIGHT_GAIN, make_gemma3_like, make_llama


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    one = make_llama(tmp_path / "one", layers=1, seed=3)
    other = make_llama(tmp_path / "other", layers=1, seed=3)
    different = make_llama(tmp_path / "different", layers=1, seed=4)
    weights = (one / "model.safetensors").read_bytes()
    assert weights == (other / "model.safetensors").read_bytes()
    assert weights != (different / "model.safetensors").read_bytes()
    assert (one / "config.json").read_text() == (other / "config.json").read_text()


def test_weights_of_a_layer_do_not_depend_on_the_number_of_layers(tmp_path: Path) -> None:
    small = load_file(make_llama(tmp_path / "small", layers=1) / "model.safetensors")
    large = load_file(make_llama(tmp_path / "large", layers=2) / "model.safetensors")
    assert small.keys() < large.keys()
    assert all(np.array_equal(small[name], large[name]) for name in small)


def test_weights_are_scaled_by_their_inputs(tmp_path: Path) -> None:
    weights = load_file(make_llama(tmp_path / "m", layers=1, hidden=256, intermediate=1024) / "model.safetensors")
    for name, inputs in (("mlp.down_proj", 1024), ("self_attn.k_proj", 256)):
        spread = weights[f"model.layers.0.{name}.weight"].std() * np.sqrt(inputs)
        assert spread == pytest.approx(WEIGHT_GAIN, rel=0.05)


def test_only_sayable_tokens_have_logits(tmp_path: Path) -> None:
    weights = load_file(make_llama(tmp_path / "m", layers=1, vocab=64, sayable=[5, 9]) / "model.safetensors")
    rows = np.flatnonzero(np.abs(weights["lm_head.weight"]).sum(axis=1))
    assert rows.tolist() == [5, 9]


def test_gemma_mixes_sliding_and_full_attention(tmp_path: Path) -> None:
    config = json.loads((make_gemma3_like(tmp_path / "m", layers=6, full_every=3) / "config.json").read_text())
    assert config["layer_types"] == (["sliding_attention"] * 2 + ["full_attention"]) * 2
