"""Tests with real architectures, tiny and with random weights."""
