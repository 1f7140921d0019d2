"""Atomic file writes, output folders, JSON and JSONL files, and Orbax folders of arrays."""
