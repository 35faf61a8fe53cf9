"""For a machine with a CUDA device: checks and timings of the kernels in one command. Needs torch."""
