"""What torch and NumPy hold in C and C++, where the closure cannot see it."""
