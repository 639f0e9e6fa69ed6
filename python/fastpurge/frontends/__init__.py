"""The command line, the demo, the notebook magics."""
