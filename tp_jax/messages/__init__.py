"""Error types, progress output and hints for renamed options."""
