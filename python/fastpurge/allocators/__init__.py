"""Memory of the process and of devices: reading it, and returning it to the system and to drivers."""
