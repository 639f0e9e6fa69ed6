"""The ComfyUI node pack: six nodes that purge memory, and one that reports it.

ComfyUI imports ``pack`` through the ``__init__.py`` of a folder in ``custom_nodes``. The code
detects features of ComfyUI and never compares versions. No other part of fastpurge depends on ComfyUI.
"""
