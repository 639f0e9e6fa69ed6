"""The nodes: their inputs and outputs, the purges, and the results shown on the canvas."""
