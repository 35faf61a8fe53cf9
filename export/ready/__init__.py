"""Parts that come as finished graphs: ONNX files, and networks of other formats turned into graphs."""
