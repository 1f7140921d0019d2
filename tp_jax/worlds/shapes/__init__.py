"""Shapes: pictures whose contents a program can check, as an embedded twin of GenEval."""
