"""Shapes: images of coloured shapes whose contents a program checks; a small GenEval."""
