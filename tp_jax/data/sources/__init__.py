"""Data sources by the name that `config.data.source` gives them, one file each."""
