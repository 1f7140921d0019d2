"""Reading and checking a workdir: its config and versions, its checkpoints and their checksums."""
