"""Encoded bytes of one image -> uint8 RGB, or `BadImage` with the reason; nothing is guessed, padded or cut short."""

import io
import struct
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from simsiam.data.image_set import BadImage

try:
    from torchvision.io import decode_jpeg
except ImportError:  # deprecated since torchvision 0.29: PIL gives the same pixels, slower
    decode_jpeg = None

# Once per image and per worker, the notice would drown the log; the import above is ready for the removal.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning)

# What is too large is refused and named by its file; PIL would say so of none.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 89_478_485
"""Most pixels an image may announce: PIL's limit for a decompression bomb, 1/4 GiB as RGB."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_JPEG_MAGIC = b"\xff\xd8\xff"
_NO_PAYLOAD = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length: TEM, RST0-7, SOI
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0-15 without DHT, JPG, DAC
_ORDINARY_FRAMES = (0xC0, 0xC1, 0xC2)


def decode(data: bytes) -> torch.Tensor:
    """The pixels of an encoded image: uint8 (3, H, W) RGB, in memory rows of pixels (channels last), not contiguous.

    JPEG goes through torchvision, whose pixels equal PIL's; PNG, WEBP, BMP, GIF (first frame), TIFF, PPM and whatever
    JPEG torchvision refuses go through PIL. Transparency is dropped, and 16-bit samples are scaled to 8 bits.

    Raises:
        BadImage: no such image, truncated or damaged data, or more than `MAX_PIXELS` announced (refused undecoded).
    """
    if not data:
        raise BadImage("the file is empty")
    if decode_jpeg is not None and data.startswith(_JPEG_MAGIC):
        header = jpeg_header(data)
        if header is not None:
            _check_size(header.width, header.height)
            try:
                # A bytearray, since torch warns of buffers that it must not write to.
                return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
            except RuntimeError:
                pass  # 12-bit, lossless, damaged: PIL decodes it or says what is wrong
    return _decode_with_pil(data)


class JpegHeader(NamedTuple):
    """What the first frame header of a JPEG announces.

    Attributes:
        ordinary: 8 bits, Huffman-coded, sequential or progressive, gray or YCbCr: what every decoder agrees on.
    """

    height: int
    width: int
    ordinary: bool


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None where the data is no JPEG or no frame header can be found."""
    if not data.startswith(_JPEG_MAGIC):
        return None
    position, stored_as_rgb = 2, False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker in _NO_PAYLOAD:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS:
            if position + 10 > len(data):
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            stored_as_rgb |= data[position + 10 : position + 10 + 3 * components : 3] == b"RGB"
            known = marker in _ORDINARY_FRAMES and bits == 8 and components in (1, 3)
            return JpegHeader(height, width, known and not stored_as_rgb)
        if marker == 0xDA:  # scan data before any frame header
            return None
        if marker == 0xEE and data[position + 4 : position + 9] == b"Adobe" and length >= 14:
            stored_as_rgb = data[position + 15] == 0  # Adobe's colour transform: none
        position += 2 + length
    return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that an encoded image announces; None where it is no image."""
    header = jpeg_header(data)
    if header is not None:
        return header.height, header.width
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:  # reads the header only
            return image.size[1], image.size[0]
    except Exception:  # PIL's plugins raise anything from SyntaxError to struct.error on damaged data
        return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} pixels announced, more than the limit of {MAX_PIXELS:,}")


def _decode_with_pil(data: bytes) -> torch.Tensor:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)  # reads the header only
        _check_size(*image.size)
        pixels = _to_rgb(image)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than the limit of {MAX_PIXELS:,} pixels announced") from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)") from None
    except Exception as error:  # PIL's plugins raise anything from SyntaxError to struct.error on damaged data
        raise BadImage(str(error) or type(error).__name__) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Decode fully and convert: uint8 (H, W, 3), writable."""
    image.load()
    if image.mode.startswith("I"):  # I;16, I;16B, and I from 16-bit files: convert("RGB") would clip at 255
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise BadImage("32-bit integer samples, which have no agreed white; convert it to 8 or 16 bits")
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadImage("floating-point samples, which have no agreed white; convert it to 8 or 16 bits")
    return np.array(image.convert("RGB"))
