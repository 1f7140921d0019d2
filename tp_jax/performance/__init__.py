"""Speed and memory: benchmarks on this machine, and ahead-of-time compilation for TPUs."""
