"""From a checkpoint to a bundle: reference models, graph builders, parity reports. Needs torch and onnx."""
