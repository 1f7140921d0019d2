"""FrozenLake: gymnasium's maps, moves and tiles, rendered as frames and read from frames."""
