"""Reports of plans and sweeps, as objects, text, JSON and plots."""
