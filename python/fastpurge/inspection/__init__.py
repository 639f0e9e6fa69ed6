"""Who holds the memory, and why an object is alive. Nothing here changes anything."""
