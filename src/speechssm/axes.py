"""The axis letters used in every docstring, graph and manifest of this project.

=====  =====================================================  ====================
axis   meaning                                                unit
=====  =====================================================  ====================
``b``  row of a batch, or slot of a state pool
``t``  language-model tokens                                  25 Hz, 40 ms each
``f``  codec frames                                           50 Hz, 20 ms each
``n``  audio samples                                          16 kHz
``d``  model width
``e``  width of the recurrence (LRU)
``h``  query heads
``g``  key/value heads
``k``  width of one head
``w``  local-attention window                                 tokens
``s``  slots of a key/value cache that grows                  tokens
``v``  vocabulary of semantic tokens
``q``  codec (residual vector quantizer) levels
``c``  codes of one level
=====  =====================================================  ====================

A *step* is one LM token, a *chunk* several tokens through the prefill graph, a *window* 30 s of
tokens through the acoustic stage, a *session* one stream being continued, a *slot* its row.
"""

from typing import Final

SAMPLE_RATE_HZ: Final = 16_000
"""Rate of every waveform inside the runtime."""
TOKEN_RATE_HZ: Final = 25
"""Rate of semantic tokens (paper section 3: USM-v2)."""
FRAME_RATE_HZ: Final = 50
"""Rate of codec frames (SoundStream)."""
TOKEN_SAMPLES = SAMPLE_RATE_HZ // TOKEN_RATE_HZ
"""n per t: 640."""
FRAME_SAMPLES = SAMPLE_RATE_HZ // FRAME_RATE_HZ
"""n per f: 320."""
TOKEN_FRAMES = FRAME_RATE_HZ // TOKEN_RATE_HZ
"""f per t: 2."""
