"""`tieredkv demo`: a real vLLM server with and without the warm tier, side by side."""
