"""FrozenLake: gymnasium's own maps, moves and pictures, as frames to draw and to read."""
