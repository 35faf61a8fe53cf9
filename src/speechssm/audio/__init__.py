"""Audio files in and out: any common recording to 16 kHz mono, and a writer that leaves no half files.

A leaf: it knows numpy, soundfile and soxr, and nothing of models.
"""

from .read import read_audio
from .write import AudioWriter, to_pcm16

__all__ = ["AudioWriter", "read_audio", "to_pcm16"]
