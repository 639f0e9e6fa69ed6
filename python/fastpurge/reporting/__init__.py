"""What a sweep did, as objects, text, JSON and plots."""
