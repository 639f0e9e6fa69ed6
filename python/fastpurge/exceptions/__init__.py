"""Releasing what exceptions and their tracebacks hold."""
