"""Atomic writes, output folders, JSON files, downloaded files, checks of arrays, Orbax folders."""
