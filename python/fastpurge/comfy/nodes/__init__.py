"""The nodes: inputs and outputs, what each purge does, and what it shows on the canvas."""
