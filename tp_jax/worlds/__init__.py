"""Worlds whose pictures a program can draw and check."""
