"""Owners of memory, and referrer paths: what is alive, and why. Nothing here changes anything."""
