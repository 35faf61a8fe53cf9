"""State, slots, random numbers, windows, stitching and sessions. Never imports torch, onnx or an engine library."""
