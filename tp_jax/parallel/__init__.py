"""Meshes, sharding rules and what each chip can do."""
