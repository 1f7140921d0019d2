"""Toy extensions, each in one file: a model, a sampler, a data source and an evaluation suite.

`test_extending.py` registers and uses them; they also serve as examples for extensions of your own.
"""
