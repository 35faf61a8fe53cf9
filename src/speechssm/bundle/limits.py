"""Named limits of everything a bundle or snapshot may hold, checked before anything is allocated.

Each is far above what the largest preset needs and far below what would hurt a machine.
"""

MANIFEST_BYTES = 4 << 20
"""Largest manifest.json that is read."""
FILES = 256
"""Most files a bundle may list."""
TEXT = 2000
"""Longest name, description or licence of a manifest, in characters."""
SIZE = 1 << 24
"""Largest size (width, vocabulary, axis, ...) a manifest may state."""
WINDOW_TOKENS = 1 << 16
"""Longest window of a manifest, in tokens (43 minutes)."""
LAYERS = 4096
"""Most layers a checkpoint may claim; ``9b`` has 38."""
LEVELS = 64
"""Most codec levels."""
STATE_BYTES = 1 << 30
"""Largest recurrent state of one row (1 GiB); ``9b`` has 52 MiB."""
PART_BYTES = 1 << 38
"""Largest weight file (256 GiB)."""

GRAPH_BYTES = 64 << 20
"""Largest .onnx file: graphs hold no weights, so real ones are far smaller."""
GRAPH_FIELDS = 400_000
"""Most protobuf fields of a graph, which bounds the time and memory of the check; ``9b`` has 55 000."""
GRAPH_NODES = 50_000
"""Most nodes of a graph once its functions are written out; ``9b`` has 4 500."""
GRAPH_DEPTH = 8
"""Deepest nesting of graphs in nodes (a Scan body is 1)."""
GRAPH_FUNCTIONS = 64
"""Most model-local functions."""
FUNCTION_DEPTH = 8
"""Longest chain of functions that call functions."""

TENSOR_HEADER_BYTES = 4 << 20
"""Largest safetensors header; JSON takes some twenty times its size in memory."""
TENSORS = 100_000
"""Most tensors in one safetensors file."""
RANK = 8
"""Most dimensions a tensor may have."""

POSITION = 1 << 24
"""Largest LM position, in tokens (7.7 days of speech): the rotary tables end here."""
SNAPSHOT_BYTES = 1 << 32
"""Largest session snapshot (4 GiB)."""
SNAPSHOT_EXTRA_BYTES = 64 << 20
"""Most bytes of a snapshot beyond the recurrent state: tokens, codes, audio not yet given out."""
