"""Access to ComfyUI's internals: prompts, caches, loaded models, custom node packs."""
