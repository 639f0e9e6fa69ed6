"""Sweeping without being called: thresholds, and points where no thread computes."""
