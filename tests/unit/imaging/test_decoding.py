"""What a file becomes: formats, colours, orientation, and what is the same to the bit."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from acclimate_service.imaging import Limits, decode

PHOTOS = Path(
    os.environ.get(
        "ACCLIMATE_TEST_PHOTOS",
        Path(__file__).parents[3].parent / "shared" / "data" / "office-caltech",
    )
)


def picture(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth image without symmetry, so that every wrong turn shows."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // width, y * 255 // height, (x * y) * 255 // (width * height), 255 - x]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def encoded(image: Image.Image, codec: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, codec, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("codec", ["PNG", "WEBP"])
def test_a_lossless_file_gives_back_its_pixels(codec: str) -> None:
    pixels = picture()
    found = decode(encoded(Image.fromarray(pixels), codec, lossless=True))
    assert np.array_equal(found, pixels)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_decoded_as_pillow_decodes_it(mode: str, options: dict[str, object]) -> None:
    file = encoded(Image.fromarray(picture()).convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert np.array_equal(decode(file), expected)


def test_photographs_are_decoded_as_pillow_decodes_them() -> None:
    photos = sorted(PHOTOS.glob("*/*/*.jpg"))[::97][:20]
    if not photos:
        pytest.skip(f"no photographs in {PHOTOS}")
    for photo in photos:
        expected = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
        assert np.array_equal(decode(photo.read_bytes()), np.asarray(expected)), photo.name


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_rotation_is_undone_as_pillow_undoes_it(orientation: int, codec: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(picture()), codec, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    assert np.array_equal(decode(file), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_leaves_the_image_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = picture()
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), "PNG", exif=exif)), pixels)


@pytest.mark.parametrize(
    "block",
    [
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40,
        b"nonsense",
    ],
)
def test_a_damaged_exif_block_leaves_the_image_as_it_is(block: bytes) -> None:
    pixels = picture()
    file = encoded(Image.fromarray(pixels), "PNG")
    assert np.array_equal(decode(file[:33] + chunk(b"eXIf", block) + file[33:]), pixels)


def test_exif_after_the_pixels_of_a_png_counts_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.fromarray(picture()), "PNG")
    late = file[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + file[-12:]
    assert decode(late).shape == (64, 48, 3)


def test_alpha_is_composited_over_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (200, 0, 0, 0)
    pixels[1, 0] = (0, 0, 0, 128)
    found = decode(encoded(Image.fromarray(pixels), "PNG"))
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[1, 0].tolist() == [127, 127, 127]
    grey = encoded(Image.fromarray(pixels).convert("LA"), "PNG")
    assert decode(grey)[0, 1].tolist() == [255, 255, 255]
    assert decode(encoded(Image.fromarray(pixels), "WEBP", lossless=True))[0, 1].min() == 255


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    found = decode(encoded(image, "PNG", transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_palette_and_one_bit_become_rgb() -> None:
    image = Image.fromarray(picture()).quantize(16)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))
    bits = Image.fromarray(picture()).convert("1")
    assert np.array_equal(decode(encoded(bits, "PNG")), np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_sixteen_bit_samples_keep_their_high_byte(colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    samples = np.full((3, 5, channels), 0x80FF, ">u2")
    if colour in (4, 6):
        samples[..., -1] = 0xFFFF
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 3, 16, colour, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(file), np.full((3, 5, 3), 0x80, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (8, 8), (17, 33)])
def test_interlaced_pngs_of_every_shape_are_whole(size: tuple[int, int]) -> None:
    width, height = size
    pixels = picture(height, width)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    rows = b""
    for x, y, dx, dy in (*passes, (0, 1, 1, 2)):
        for row in pixels[y::dy, x::dx]:
            rows += b"\0" + row.tobytes() if row.size else b""
    file = b"\x89PNG\r\n\x1a\n"
    file += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(file), pixels)


def test_large_images_are_converted_strip_by_strip_without_a_seam() -> None:
    pixels = picture(700, 40, 4)
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    assert np.array_equal(decode(encoded(image, "PNG")), expected)
    cmyk = encoded(Image.fromarray(pixels).convert("RGB").convert("CMYK"), "JPEG")
    assert np.array_equal(decode(cmyk), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
def test_bytes_after_the_image_are_ignored(codec: str) -> None:
    file = encoded(Image.fromarray(picture()), codec)
    polyglot = file + b"PK\x03\x04" + os.urandom(5000) + b"\xff\xda" * 999
    assert np.array_equal(decode(polyglot), decode(file))


def test_an_apng_of_one_frame_is_an_image() -> None:
    file = encoded(Image.fromarray(picture()), "PNG")
    one = file[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + file[33:]
    assert np.array_equal(decode(one), picture())


def test_limits_are_the_caller_s_and_inclusive() -> None:
    file = encoded(Image.fromarray(picture()), "PNG")
    exact = Limits(bytes=len(file), pixels=48 * 64, side=64)
    assert decode(file, exact).shape == (48, 64, 3)


def test_many_threads_decode_the_same_pixels() -> None:
    files = [
        encoded(Image.fromarray(picture(90 + n, 130)), codec)
        for n in range(4)
        for codec in ("JPEG", "PNG", "WEBP")
    ]
    expected = [decode(file) for file in files]
    wrong: list[int] = []

    def work() -> None:
        for index, file in enumerate(files * 5):
            if not np.array_equal(decode(file), expected[index % len(files)]):
                wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
