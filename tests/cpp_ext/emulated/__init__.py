"""A CUDA device on a processor, for the kernels whose threads work together."""
