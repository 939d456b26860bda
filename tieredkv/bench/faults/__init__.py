"""Real nodes under load, with one fault after the other: what it costs, and that no byte is ever wrong."""
