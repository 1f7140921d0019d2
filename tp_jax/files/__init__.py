"""Atomic writes, output folders, JSON and JSONL files, checks of arrays, Orbax folders."""
