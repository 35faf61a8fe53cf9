"""Bundles: a folder with a manifest, graphs and safetensors weights. A leaf: no engine is imported here."""

from .manifest import GraphEntry, Manifest
from .reader import Bundle, open_bundle, read_manifest
from .state import StateTensor, state_bytes

__all__ = ["Bundle", "GraphEntry", "Manifest", "StateTensor", "open_bundle", "read_manifest", "state_bytes"]
