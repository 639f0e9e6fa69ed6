"""Tests of the documentation: they run the code blocks of its pages."""
