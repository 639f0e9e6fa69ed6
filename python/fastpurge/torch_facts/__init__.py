"""Facts about torch and NumPy: references and memory in C and C++, which the closure cannot see."""
