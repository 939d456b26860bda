"""Small models with random weights, written on the spot: nothing is downloaded.

Weights are N(0, 1.5 / sqrt(fan_in)), so that attention is peaked and a wrong KV byte changes the tokens.
(With all-zero or tiny weights a corrupted cache goes unnoticed.) Equal arguments give equal bytes.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType] - os.PathLike without its parameter

WEIGHT_GAIN: Final = 1.5

Array = npt.NDArray[np.float32]


class _Weights:
    """Collects named tensors; each has a random stream of its own, so order does not matter."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Array] = {}
        self._seed = seed

    def linear(self, name: str, outputs: int, inputs: int, *, gain: float = WEIGHT_GAIN) -> None:
        """A matrix (outputs, inputs) of N(0, gain / sqrt(inputs))."""
        stream = np.random.default_rng([self._seed, *name.encode()])
        weight = stream.standard_normal((outputs, inputs), dtype=np.float32)
        self.tensors[f"{name}.weight"] = weight * np.float32(gain / np.sqrt(inputs))

    def norm(self, name: str, size: int, *, value: float = 1.0) -> None:
        """A vector of equal scales."""
        self.tensors[f"{name}.weight"] = np.full(size, value, dtype=np.float32)

    def save(self, path: Path, config: Mapping[str, object]) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        return path


def make_llama(
    path: Path,
    *,
    layers: int = 4,
    hidden: int = 256,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int | None = None,
    vocab: int = 512,
    context_tokens: int = 4096,
    sayable: Collection[int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a llama with grouped-query attention into the directory `path`; return `path`.

    The defaults give 2.5 M parameters (10 MB). `head_dim` defaults to hidden / heads, `intermediate` to
    2 * hidden. With `sayable` greedy decoding yields only these token ids: the others' logits are 0,
    far below the largest of the rest.
    """
    head_dim = head_dim or hidden // heads
    intermediate = intermediate or 2 * hidden
    weights = _Weights(seed)
    weights.linear("model.embed_tokens", vocab, hidden, gain=float(np.sqrt(hidden)))
    for layer in range(layers):
        at = f"model.layers.{layer}"
        _attention(weights, f"{at}.self_attn", hidden, heads, kv_heads, head_dim)
        _mlp(weights, f"{at}.mlp", hidden, intermediate)
        weights.norm(f"{at}.input_layernorm", hidden)
        weights.norm(f"{at}.post_attention_layernorm", hidden)
    weights.norm("model.norm", hidden)
    weights.linear("lm_head", vocab, hidden)
    if sayable is not None:
        silent = np.ones(vocab, dtype=np.bool_)
        silent[list(sayable)] = False
        weights.tensors["lm_head.weight"][silent] = 0.0
    return weights.save(
        path,
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": context_tokens,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    )


def make_gemma3_like(
    path: Path,
    *,
    layers: int = 6,
    full_every: int = 3,
    hidden: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    sliding_window_tokens: int = 128,
    vocab: int = 512,
    context_tokens: int = 4096,
    seed: int = 0,
) -> Path:
    """Write a gemma3 text model into `path`: sliding-window layers, each `full_every`-th one full.

    vLLM splits its KV cache into several groups (two of sliding layers and one of full ones, by default).
    """
    weights = _Weights(seed)
    weights.linear("model.embed_tokens", vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        _attention(weights, f"{at}.self_attn", hidden, heads, kv_heads, head_dim)
        # Gemma scales by 1 + weight. The norms replace the weights' gain on queries and keys: keep it.
        weights.norm(f"{at}.self_attn.q_norm", head_dim, value=WEIGHT_GAIN - 1)
        weights.norm(f"{at}.self_attn.k_norm", head_dim, value=WEIGHT_GAIN - 1)
        _mlp(weights, f"{at}.mlp", hidden, 2 * hidden)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights.norm(f"{at}.{name}_layernorm", hidden, value=0.0)
    weights.norm("model.norm", hidden, value=0.0)
    weights.linear("lm_head", vocab, hidden)
    kinds = [
        "full_attention" if layer % full_every == full_every - 1 else "sliding_attention" for layer in range(layers)
    ]
    return weights.save(
        path,
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "layer_types": kinds,
            "sliding_window": sliding_window_tokens,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "max_position_embeddings": context_tokens,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    )


def _attention(weights: _Weights, at: str, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
    weights.linear(f"{at}.q_proj", heads * head_dim, hidden)
    weights.linear(f"{at}.k_proj", kv_heads * head_dim, hidden)
    weights.linear(f"{at}.v_proj", kv_heads * head_dim, hidden)
    weights.linear(f"{at}.o_proj", hidden, heads * head_dim)


def _mlp(weights: _Weights, at: str, hidden: int, intermediate: int) -> None:
    weights.linear(f"{at}.gate_proj", intermediate, hidden)
    weights.linear(f"{at}.up_proj", intermediate, hidden)
    weights.linear(f"{at}.down_proj", hidden, intermediate)
