"""Shape of the codec (SoundStream: 16 kHz audio to q levels of codes at 50 Hz and back)."""

from pydantic import PositiveInt

from .base import Shape


class CodecShape(Shape):
    """Causal frame-rate ConvNeXt encoder and decoder around a residual vector quantizer."""

    levels: PositiveInt
    codes: PositiveInt
    latent: PositiveInt
    encoder_width: PositiveInt
    encoder_layers: PositiveInt
    decoder_width: PositiveInt
    decoder_layers: PositiveInt
    expansion: PositiveInt = 3
    kernel: PositiveInt = 7
    fft: PositiveInt = 1280
