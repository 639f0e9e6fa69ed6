"""What is known of ComfyUI's insides: prompts, caches, loaded models, custom node packs."""
