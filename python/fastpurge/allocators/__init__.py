"""Memory as the operating system and the allocators of devices report it, and giving it back to them."""
