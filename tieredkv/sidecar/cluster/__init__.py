"""The other nodes: who they are, how each proves itself, and what is said between them."""
