"""Facts of the interpreter: folders of libraries, imported modules, and how running code is followed."""
