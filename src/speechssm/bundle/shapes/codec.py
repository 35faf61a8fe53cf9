"""Shape of the codec (SoundStream: 16 kHz audio to q levels of codes at 50 Hz and back)."""

from typing import Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from speechssm.axes import FRAME_RATE_HZ, FRAME_SAMPLES

from .base import Shape


class CodecShape(Shape):
    """Causal frame-rate ConvNeXt encoder and decoder around a residual vector quantizer.

    Both halves work on frames of 320 samples. ``fft`` is the length in samples of the analysis and
    synthesis windows, ``lookahead`` how many frames the encoder sees past its own window, ``bands``
    the number of mel bands among the encoder's inputs.

    Exact streaming needs nothing of the widths: the decoder uses only operators that ONNX Runtime
    computes alike at every position (``tests/export/test_codec_exact.py``).
    """

    levels: PositiveInt
    codes: PositiveInt
    latent: PositiveInt
    encoder_width: PositiveInt
    encoder_layers: PositiveInt
    decoder_width: PositiveInt
    decoder_layers: PositiveInt
    expansion: PositiveInt = 3
    kernel: PositiveInt = 7
    fft: PositiveInt = 640
    lookahead: NonNegativeInt = 2
    bands: PositiveInt = 64

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.fft % FRAME_SAMPLES or self.fft < 2 * FRAME_SAMPLES:
            raise ValueError(
                f"fft {self.fft} is not 2 or more whole frames of {FRAME_SAMPLES} samples: "
                "windows must overlap and begin at a frame"
            )
        if self.kernel < 2:
            raise ValueError("kernel must be at least 2: a convolution of 1 carries no state")
        if self.bands < 2:
            raise ValueError("bands must be at least 2: they are spaced from 0 Hz to 8 kHz")
        return self

    @property
    def hops(self) -> int:
        """Frames covered by one window: fft / 320."""
        return self.fft // FRAME_SAMPLES

    @property
    def bins(self) -> int:
        """Frequency bins of one window, 0 Hz and 8 kHz included."""
        return self.fft // 2 + 1

    @property
    def bit_rate(self) -> float:
        """Bits per second of a full set of codes."""
        return self.levels * FRAME_RATE_HZ * (self.codes - 1).bit_length()


CODEC_PRESETS: dict[str, CodecShape] = {
    "tiny": CodecShape(
        levels=4,
        codes=32,
        latent=8,
        encoder_width=16,
        encoder_layers=1,
        decoder_width=32,
        decoder_layers=2,
        bands=16,
    ),
    "demo": CodecShape(
        levels=8,
        codes=1024,
        latent=64,
        encoder_width=208,
        encoder_layers=3,
        decoder_width=272,
        decoder_layers=4,
    ),
}
"""Shapes by preset name: ``tiny`` for tests, ``demo`` for the voice that ships (3.4 M parameters, 4 kbps)."""
