"""Freeing what exceptions and their tracebacks keep alive."""
