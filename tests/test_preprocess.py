"""Preprocessing: every format comes out as upright RGB, everything else as an error that helps."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from models.errors import ImageTooLarge, InvalidImage, InvalidRoute
from models.preprocess import FORMATS, ImageLimits, Preprocessing, load_pixels, scale_pixels

pillow_heif.register_heif_opener()  # to write such files

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def grey16(value: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.fromarray(np.full(size, value, dtype=np.uint16))


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def color(data: bytes) -> tuple[int, ...]:
    """Return the colour of an image that has only one."""
    pixels = load_pixels(data, 4)
    assert pixels.shape == (4, 4, 3)
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_is_read(file_format: str) -> None:
    found = color(encoded(Image.new("RGB", (20, 10), RED), file_format, **_exact(file_format)))
    assert np.abs(np.subtract(found, RED)).max() <= 2


def _exact(file_format: str) -> dict[str, object]:
    return {"lossless": True} if file_format == "WEBP" else {}


def test_an_image_of_the_wanted_size_is_left_as_it_is() -> None:
    image = noise(12, 12, 3)
    np.testing.assert_array_equal(load_pixels(encoded(image), 12), np.asarray(image))


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        pytest.param(Image.new("L", (5, 5), 77), {}, (77, 77, 77), id="grey"),
        pytest.param(Image.new("1", (5, 5), 1), {}, WHITE, id="one-bit"),
        pytest.param(Image.new("RGBA", (5, 5), (255, 0, 0, 0)), {}, WHITE, id="transparent"),
        pytest.param(Image.new("RGBA", (5, 5), (0, 0, 0, 51)), {}, (204, 204, 204), id="half transparent"),
        pytest.param(Image.new("LA", (5, 5), (0, 0)), {}, WHITE, id="transparent grey"),
        pytest.param(Image.new("P", (5, 5), 0), {}, BLACK, id="palette"),
        pytest.param(Image.new("P", (5, 5), 0), {"transparency": 0}, WHITE, id="palette with transparency"),
        pytest.param(Image.new("L", (5, 5), 7), {"transparency": 7}, WHITE, id="grey with a transparent value"),
        pytest.param(grey16(65535), {}, WHITE, id="16-bit white"),
        pytest.param(grey16(0), {}, BLACK, id="16-bit black"),
        pytest.param(grey16(100 * 257), {}, (100, 100, 100), id="16-bit grey"),
        pytest.param(grey16(16384), {}, (64, 64, 64), id="16-bit, dark"),
        pytest.param(grey16(200), {}, (200, 200, 200), id="16-bit, no value above 255"),
    ],
)
def test_modes_of_png(image: Image.Image, options: dict[str, object], expected: tuple[int, ...]) -> None:
    assert color(encoded(image, "PNG", **options)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(np.full((4, 4), 0.5, np.float32), 128, id="floats up to 1"),
        pytest.param(np.full((4, 4), 128.0, np.float32), 128, id="floats up to 255"),
        pytest.param(np.full((4, 4), np.nan, np.float32), 0, id="not a number"),
        pytest.param(np.full((4, 4), 128, np.int32), 128, id="32-bit up to 255"),
        pytest.param(np.full((4, 4), 128 * 257, np.int32), 128, id="32-bit up to 65535"),
        pytest.param(np.full((4, 4), -5, np.int32), 0, id="negative"),
    ],
)
def test_deep_greys_of_tiff(values: np.ndarray, expected: int) -> None:
    assert color(encoded(Image.fromarray(values), "TIFF")) == (expected,) * 3


def test_cmyk_jpeg() -> None:
    assert color(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) == RED


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), shade) for shade in (RED, BLACK)]
    assert color(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(file_format: str, orientation: int) -> None:
    # what EXIF's eight values mean, as turns and flips of the stored rows and columns
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda stored: stored,
        2: np.fliplr,
        3: lambda stored: np.rot90(stored, 2),
        4: np.flipud,
        5: lambda stored: stored.transpose(1, 0, 2),
        6: lambda stored: np.rot90(stored, -1),
        7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    image = noise(8, 8, 3)
    data = encoded(image, file_format, exif=exif(orientation), **_exact(file_format))
    np.testing.assert_array_equal(load_pixels(data, 8), turns[orientation](np.asarray(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, printed once in production
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize(
    "metadata",
    [b"", b"garbage", b"MM\0*\0\0\0\x08\0\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x03ab\0\0"],
    ids=["empty", "garbage", "cut off", "orientation is a text"],
)
def test_damaged_metadata_does_not_matter(metadata: bytes) -> None:
    data = encoded(Image.new("RGB", (16, 16), RED), "JPEG")
    segment = b"\xff\xe1" + (len(metadata) + 8).to_bytes(2, "big") + b"Exif\0\0" + metadata
    assert color(data[:2] + segment + data[2:]) == color(data)


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (3, 2)], ids=str)
def test_any_shape_becomes_a_square(size: tuple[int, int]) -> None:
    assert (load_pixels(encoded(Image.new("RGB", size, RED)), 64) == RED).all()


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_image_is_refused(file_format: str) -> None:
    data = encoded(noise(64, 64, 3), file_format)
    with pytest.raises(InvalidImage, match=r"(truncated or damaged|not a readable image)"):
        load_pixels(data[: len(data) // 2], 8)


def test_the_message_of_a_truncated_image() -> None:
    data = encoded(noise(64, 64, 3))
    with pytest.raises(InvalidImage, match=r"^the PNG image is truncated or damaged \(.+\): send a whole, readable"):
        load_pixels(data[: len(data) // 2], 8)


@pytest.mark.parametrize(
    "data",
    [b"x", b"<html>no</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", b"\x89PNG\r\n\x1a\n"],
    ids=["byte", "html", "postscript", "only a signature"],
)
def test_what_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(
        InvalidImage, match=rf"^the {len(data)} bytes are not a readable image \(\w+\): send one of PNG"
    ):
        load_pixels(data, 8)


def test_no_bytes_are_refused() -> None:
    with pytest.raises(InvalidImage, match=r"^the image is empty \(0 bytes\): send one of PNG, JPEG, WEBP"):
        load_pixels(b"", 8)


def test_too_many_bytes_are_refused() -> None:
    data = encoded(noise(8, 8, 3))
    limits = ImageLimits(max_bytes=len(data) - 1)
    with pytest.raises(ImageTooLarge, match=f"^the image has {len(data)} bytes; at most {len(data) - 1} are allowed"):
        load_pixels(data, 8, limits)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLarge, match=r"^the image has 30 x 20 pixels; at most 599 in all are allowed: scale it"):
        load_pixels(encoded(noise(20, 30, 3)), 8, ImageLimits(max_pixels=599))


@pytest.mark.parametrize("orientation", [1, 6], ids=["upright", "turned"])
def test_a_large_photo_is_decoded_at_a_reduced_scale(monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    """Of 1600 x 1200 pixels 56 are wanted: an eighth of each side is decoded, and it shows the same."""
    photo = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    decoded: list[tuple[int, int]] = []
    monkeypatch.setattr(Image.Image, "load", _told(Image.Image.load, decoded))
    found = load_pixels(encoded(photo, "JPEG", exif=exif(orientation)), 56)
    assert max(decoded) == (200, 150)
    upright = photo if orientation == 1 else photo.transpose(Image.Transpose.ROTATE_270)
    expected = load_pixels(encoded(upright), 56)
    assert np.abs(found.astype(int) - expected).max() <= 3


def _told(load: Callable[..., Any], sizes: list[tuple[int, int]]) -> Callable[..., Any]:
    def loaded(image: Image.Image) -> Any:
        if image.format == "JPEG":
            sizes.append(image.size)
        return load(image)

    return loaded


def test_a_decompression_bomb_is_refused() -> None:
    size = struct.pack(">II", 60_000, 60_000)
    header = b"IHDR" + size + bytes([1, 0, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(ImageTooLarge, match=r"3600000000 pixels.+ at most 50,000,000 pixels are allowed: scale it"):
        load_pixels(bomb + b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND")), 8)


def test_scaling_follows_mean_and_standard_deviation() -> None:
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    expected = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(scale_pixels(pixels, preprocessing), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_a_standard_deviation_of_zero_is_refused() -> None:
    with pytest.raises(InvalidRoute, match="three positive standard deviations"):
        Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.0, 0.5))


def png_with(*chunks: tuple[bytes, bytes], image: Image.Image | None = None) -> bytes:
    """Return a PNG with more chunks behind its header."""
    data = encoded(noise(8, 8, 3) if image is None else image)
    packed = [
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in chunks
    ]
    return data[:33] + b"".join(packed) + data[33:]


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"tEXt", b"key\0" + bytes(range(65, 91)) * 60_000)] * 50,
        [(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 2**21))],
        [(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * 2**21))],
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 2**21))] * 6,
        [(b"iCCP", b"key\0\0" + zlib.compress(b"x" * 2**21))],
    ],
    ids=["much text", "compressed", "international", "xmp", "colour profile"],
)
def test_a_whole_png_is_read_whatever_its_metadata(chunks: list[tuple[bytes, bytes]]) -> None:
    image = noise(8, 8, 3)
    found = load_pixels(png_with(*chunks, image=image), 8, ImageLimits(max_bytes=2**30))
    np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_orientation_in_a_text_counts(is_packed: bool) -> None:
    image = noise(8, 8, 3)
    text = b'<x tiff:Orientation="6"/>'
    xmp = b"XML:com.adobe.xmp\0" + bytes([is_packed]) + b"\0\0\0" + (zlib.compress(text) if is_packed else text)
    data = png_with((b"tEXt", b"k\0v"), (b"iTXt", xmp), image=image)
    np.testing.assert_array_equal(load_pixels(data, 8), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_grey_of_fewer_than_16_bits_in_16_looks_like_one_of_8(file_format: str, bits: int) -> None:
    grey = np.linspace(3, 250, 64).round().astype(np.uint16).reshape(8, 8)
    deep = (grey.astype(np.float64) * (2**bits - 1) / 255).round().astype(np.uint16)
    found = load_pixels(encoded(Image.fromarray(deep), file_format), 8)
    assert np.abs(found[..., 0].astype(int) - grey).max() <= 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png_with((b"sBIT", b"\x10"), image=grey16(514)), 2, id="PNG of 16 bits"),
        pytest.param(png_with((b"sBIT", b"\x0c"), image=grey16(514)), 32, id="PNG of 12 bits"),
        pytest.param(png_with((b"sBIT", b"\x0c"), image=grey16(128 * 257)), 128, id="PNG of 12 bits, scaled up"),
        pytest.param(encoded(grey16(514), "TIFF", tiffinfo={281: 65535}), 2, id="TIFF of 16 bits"),
        pytest.param(encoded(grey16(514), "TIFF", tiffinfo={281: 4095}), 32, id="TIFF of 12 bits"),
    ],
)
def test_a_range_that_a_file_declares_counts(data: bytes, expected: int) -> None:
    assert color(data) == (expected,) * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["HEIF", "AVIF"])
def test_photos_of_phones_are_turned_upright(file_format: str, orientation: int) -> None:
    photo = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    photo.paste(RED, (0, 0, 48, 32))
    as_jpeg = encoded(photo, "JPEG", quality=95, exif=exif(orientation))
    own = {"exif": exif(orientation)} if file_format == "AVIF" else {}  # HEIF's writer takes it from the opened file
    found = load_pixels(encoded(Image.open(io.BytesIO(as_jpeg)), file_format, quality=95, **own), 16)
    assert np.abs(found.astype(int) - load_pixels(as_jpeg, 16)).mean() < 4


@pytest.mark.parametrize("file_format", ["HEIF", "AVIF"])
def test_the_pixels_of_a_phones_photo_are_limited(file_format: str) -> None:
    with pytest.raises(ImageTooLarge, match=r"^the image has 96 x 64 pixels; at most 6,143 in all are allowed: scale"):
        load_pixels(encoded(noise(64, 96, 3), file_format), 8, ImageLimits(max_pixels=6143))


def test_ten_bits_a_channel_are_brought_to_eight() -> None:
    grey = np.full((64, 64, 3), 100 * 257, dtype=np.uint16)
    file = io.BytesIO()
    pillow_heif.from_bytes(mode="RGB;16", size=(64, 64), data=grey.tobytes()).save(file, quality=100)
    assert np.abs(load_pixels(file.getvalue(), 8).astype(int) - 100).max() <= 2
