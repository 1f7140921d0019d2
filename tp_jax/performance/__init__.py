"""Compiling for accelerators that aren't there, and what the program would take."""
