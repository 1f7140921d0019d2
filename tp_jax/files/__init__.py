"""Files that are whole or not there at all, JSON lines, and Orbax folders."""
