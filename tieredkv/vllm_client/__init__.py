"""tieredkv inside vLLM: a thin cache client. The only package that imports vllm and torch."""
