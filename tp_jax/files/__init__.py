"""Atomic file writes, output folders, JSON and JSONL files, finite arrays, Orbax folders of arrays."""
