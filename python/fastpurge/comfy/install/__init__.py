"""How the pack gets into a ComfyUI. Imports neither ComfyUI nor torch."""
