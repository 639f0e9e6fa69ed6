"""Install the pack into a ComfyUI, and find installed packs. Imports neither ComfyUI nor torch."""
