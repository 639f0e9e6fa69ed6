"""Facts of the interpreter: which folders are libraries, what is imported, how running code is followed."""
