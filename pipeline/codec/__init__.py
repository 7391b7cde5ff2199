"""The codec of a block: arrays in, bytes out, and back, within the error bounds and bit by bit the same."""

from pipeline.codec.codec import CODEC_FILE, CODER_FILE, METHODS, Codec, EncodedBlock
from pipeline.codec.model import MODEL, ModelCoder

__all__ = ["CODEC_FILE", "CODER_FILE", "METHODS", "MODEL", "Codec", "EncodedBlock", "ModelCoder"]
