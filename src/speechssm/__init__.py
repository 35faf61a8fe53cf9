"""SpeechSSM runtime: continue speech from a prompt recording, for as long as asked."""

__version__ = "0.1.0.dev0"
