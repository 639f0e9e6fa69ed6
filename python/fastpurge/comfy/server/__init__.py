"""Purges between prompts: on request over HTTP, and when memory usage is above a threshold."""
