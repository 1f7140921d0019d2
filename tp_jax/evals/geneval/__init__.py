"""GenEval."""
