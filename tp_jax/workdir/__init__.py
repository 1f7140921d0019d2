"""What a workdir holds: its record, its checkpoints, and their checksums."""
