"""Named limits of everything a bundle or snapshot may hold, checked before anything is allocated."""

MANIFEST_BYTES = 4 << 20
"""Largest manifest.json that is read."""
FILES = 256
"""Most files a bundle may list."""
GRAPH_BYTES = 64 << 20
"""Largest .onnx file: graphs hold no weights, so real ones are far smaller."""
PART_BYTES = 1 << 38
"""Largest weight file (256 GiB)."""
TENSOR_HEADER_BYTES = 16 << 20
"""Largest safetensors header."""
TENSORS = 100_000
"""Most tensors in one safetensors file."""
RANK = 8
"""Most dimensions a tensor may have."""
POSITION = 1 << 24
"""Largest LM position, in tokens (7.7 days of speech): the rotary tables end here."""
SNAPSHOT_BYTES = 1 << 32
"""Largest session snapshot (4 GiB)."""
