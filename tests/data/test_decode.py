"""Encoded bytes give the right uint8 RGB or `BadImage`, never a guess, a crash or a wait."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data import decode as module
from simsiam.data.decode import MAX_PIXELS, decode
from simsiam.data.image_set import BadImage


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(height: int = 20, width: int = 30, mode: str = "RGB") -> Image.Image:
    rng = np.random.Generator(np.random.Philox(key=[1, 2]))
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def png_of_16_bits(gray: np.ndarray) -> bytes:
    return encode(Image.fromarray(gray.astype(np.uint16)), "PNG")


def huge_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_announcing(height: int, width: int) -> bytes:
    data = bytearray(encode(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pil(mode, progressive):
    data = encode(picture(mode=mode), "JPEG", quality=90, progressive=progressive)
    decoded = decode(data)
    assert decoded.dtype == torch.uint8
    assert decoded.permute(1, 2, 0).is_contiguous()
    assert torch.equal(decoded, pixels_of(Image.open(io.BytesIO(data))))


def test_jpeg_without_torchvision_gives_the_same_pixels(monkeypatch):
    data = encode(picture(375, 500), "JPEG", quality=90)
    fast = decode(data)
    monkeypatch.setattr(module, "decode_jpeg", None)
    assert torch.equal(decode(data), fast)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_written(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert torch.equal(decode(encode(picture(), format, **options)), pixels_of(picture()))


def test_a_jpeg_that_is_stored_as_rgb_is_not_taken_for_one_of_luma_and_chroma():
    data = encode(picture(), "JPEG", keep_rgb=True, quality=95)
    assert not module.jpeg_header(data).ordinary
    torch.testing.assert_close(decode(data), pixels_of(Image.open(io.BytesIO(data))), atol=1, rtol=0)
    assert (decode(data).int() - pixels_of(picture()).int()).abs().float().mean() < 3


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1"])
def test_png_modes(mode):
    image = picture().quantize(16) if mode == "P" else picture(mode=mode)
    assert torch.equal(decode(encode(image, "PNG")), pixels_of(image))


def test_palette_with_transparency():
    image = picture().quantize(16)
    assert torch.equal(decode(encode(image, "PNG", transparency=3)), pixels_of(image))


def test_first_frame_of_a_gif():
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    decoded = decode(encode(first, "GIF", save_all=True, append_images=[second]))
    assert torch.equal(decoded, pixels_of(first))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(format):
    gray = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(gray), format))
    assert decoded.shape == (3, 1, 6)
    for channel in decoded:
        assert channel.tolist() == [[0, 0, 1, 1, 128, 255]]


def test_samples_without_an_agreed_white_are_refused():
    for array in (np.array([[0, 100_000]], dtype=np.int32), np.array([[0.5]], dtype=np.float32)):
        with pytest.raises(BadImage, match="agreed white"):
            decode(encode(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_one_pixel(format):
    assert decode(encode(Image.new("RGB", (1, 1), (200, 200, 200)), format)).tolist() == [[[200]]] * 3


# Bytes behind all pixels: the end of PNG's stream, its checksums and last chunk, GIF's trailer.
BEHIND = {"PNG": 21, "GIF": 2}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_truncated_anywhere_is_refused_unless_all_pixels_are_there(format):
    data = encode(picture(64, 64), format)
    whole, pixels_end = decode(data), len(data) - BEHIND.get(format, 0)
    for end in (*(len(data) * tenth // 10 for tenth in range(10)), *range(pixels_end - 64, pixels_end)):
        with pytest.raises(BadImage):
            decode(data[:end])
    for end in range(pixels_end, len(data)):
        assert torch.equal(decode(data[:end]), whole)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\0" * 1000, b"an image that is text\n" * 50, b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\xff\xff"],
    ids=["empty", "zero", "zeros", "text", "magic", "header"],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert str(caught.value)


@pytest.mark.parametrize("data", [huge_png(), jpeg_announcing(65_000, 65_000), jpeg_announcing(10_000, 9_000)])
def test_a_bomb_is_refused_from_its_header(data, monkeypatch):
    def decode_anyway(*_, **__):
        raise AssertionError("decoded a bomb")

    monkeypatch.setattr(module, "decode_jpeg", decode_anyway)
    monkeypatch.setattr(module, "_to_rgb", decode_anyway)
    with pytest.raises(BadImage, match="limit"):
        decode(data)


def test_the_limit_is_announced_pixels_above_it():
    module._check_size(MAX_PIXELS, 1)
    with pytest.raises(BadImage, match="89,478,485"):
        module._check_size(MAX_PIXELS + 1, 1)


def test_size_of_a_jpeg_behind_long_metadata():
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    data = encode(picture(20, 30), "JPEG", exif=exif, comment=b"\xff\xc0" * 1000)
    assert module.jpeg_header(data)[:2] == (20, 30)
