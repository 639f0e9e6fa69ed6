"""Real architectures, tiny and with random weights."""
