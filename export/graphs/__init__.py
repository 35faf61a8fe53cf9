"""ONNX graphs of the reference models, built by hand from standard operators."""
