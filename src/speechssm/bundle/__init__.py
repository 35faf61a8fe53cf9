"""Bundles: a folder with a manifest, graphs and safetensors weights. A leaf: no engine is imported here."""
