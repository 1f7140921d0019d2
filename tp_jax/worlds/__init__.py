"""Synthetic worlds: images that a program renders, and whose contents a program reads back."""
