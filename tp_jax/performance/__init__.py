"""Speed and memory: measured on this machine, and predicted by compiling for TPUs."""
