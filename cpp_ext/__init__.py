"""LRU maths once, for the CPU op, the CUDA kernels and the TensorRT plugin.

Python here only builds and finds the libraries.
"""
