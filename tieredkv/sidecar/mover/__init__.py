"""The mover: a process beside the sidecar that copies chunks between places, here and from other nodes.

Apart, because its threads would cost the sidecar's loop milliseconds. The sidecar holds `client`;
`process` is what runs apart.
"""
