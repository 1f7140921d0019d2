"""Device meshes, sharding rules, processes, random streams and accelerator specifications."""
