"""Purges between prompts: on request over HTTP, and when memory is full."""
