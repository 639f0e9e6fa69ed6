"""The ComfyUI node pack: six nodes that purge memory and never break a prompt.

``pack`` is imported inside a ComfyUI process, by the ``__init__.py`` of a folder in ``custom_nodes``. All of
this knows ComfyUI by its features and not by its version, and nothing else in fastpurge knows of it.
"""
