"""Shapes, the embedded twin of GenEval."""
