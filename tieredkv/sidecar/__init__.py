"""The sidecar: one process per node that owns the warm tier and serves it to the node's engines."""
