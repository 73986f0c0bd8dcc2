"""What an image costs is known before it is decoded: sizes as decoded, and structures that repeat are refused."""

import io
import struct
import zlib
from collections.abc import Callable

import pillow_heif
import pytest
from PIL import Image

from models.errors import ImageTooLarge, InvalidImage, Mu2NetError
from models.image_cost import MAX_PARTS, MAX_SCANS, QUICK_PARTS, ImageCost, image_cost
from models.preprocess import FORMATS, load_pixels
from tests.support.encoded import photo, with_scans

pillow_heif.register_heif_opener()  # to write such files


def segments(data: bytes, count: int) -> bytes:
    """A JPEG with so many comments before its first scan."""
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def chunks(data: bytes, count: int) -> bytes:
    """A PNG with so many chunks that no pixel depends on, behind its head."""
    empty = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    return data[:33] + empty * count + data[33:]


def blocks(data: bytes, count: int) -> bytes:
    """A GIF with a comment of so many blocks, before its first frame."""
    start = 13 + (3 * 2 ** (1 + (data[10] & 7)) if data[10] & 0x80 else 0)
    return data[:start] + b"!\xfe" + b"\1a" * count + b"\0" + data[start:]


def directory(tags: int, size: int) -> bytes:
    """A TIFF's directory whose tags all have the same `size` bytes for their value."""
    entries = b"".join(struct.pack("<HHII", 40_000 + tag, 1, size, 0) for tag in range(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", tags) + entries + bytes(4)


def exif_jpeg(exif: bytes) -> bytes:
    data = photo()
    segment = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("is_quick", [True, False])
def test_the_size_is_known_before_decoding(file_format: str, is_quick: bool) -> None:
    known = image_cost(photo(file_format, 64, 32), is_quick=is_quick).pixels
    assert known == (64 * 64 if file_format == "HEIF" else 64 * 32)  # its blocks are of 64 pixels


@pytest.mark.parametrize(
    ("data", "cost"),
    [
        (photo(), ImageCost(1200, 1, True)),
        (photo(progressive=True), ImageCost(1200, 10, True)),
        (with_scans(MAX_SCANS), ImageCost(1200, MAX_SCANS, True)),
        (photo("TIFF", compression="tiff_lzw"), ImageCost(1200)),
        (photo("PNG"), ImageCost(1200, is_plain=True)),
        (chunks(photo("PNG"), QUICK_PARTS), ImageCost(1200)),
        (segments(photo(), QUICK_PARTS), ImageCost(0)),
        (photo("GIF"), ImageCost(1200, is_plain=True)),
        (blocks(photo("GIF"), QUICK_PARTS), ImageCost(1200)),
        (photo("WEBP"), ImageCost(1200, is_plain=True)),
        (photo("WEBP", lossless=True), ImageCost(1200, is_plain=True)),
        (photo("WEBP", exif=b"Exif\0\0"), ImageCost(1200, is_plain=True)),
        (photo("AVIF"), ImageCost(1200)),
        (b"GIF89a", ImageCost(0, is_plain=True)),
        (b"no image", ImageCost(0, is_plain=True)),
    ],
    ids=str,
)  # fmt: skip
def test_a_quick_look_calls_plain_only_what_is(data: bytes, cost: ImageCost) -> None:
    assert image_cost(data, is_quick=True) == cost


def test_an_animation_or_a_packed_bitmap_is_not_plain() -> None:
    frames = io.BytesIO()
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    images[0].save(frames, "WEBP", save_all=True, append_images=images[1:])
    assert image_cost(frames.getvalue(), is_quick=True) == ImageCost(1200)
    packed = bytearray(photo("BMP"))
    packed[30] = 1
    assert image_cost(bytes(packed), is_quick=True) == ImageCost(1200)


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (with_scans(MAX_SCANS + 1), ImageTooLarge, "the JPEG image has more than 100 scans; at most 100 are allowed"),
        (segments(photo(), MAX_PARTS), InvalidImage, "the image has more than 20,000 JPEG segments"),
        (photo()[:20] + bytes(2**17) + photo()[20:], InvalidImage, "the JPEG image has 131,072 bytes between its seg"),
        (photo()[:2] + b"\xff" * 2**17 + photo()[2:], InvalidImage, "the JPEG image has 65,537 bytes between its seg"),
        (chunks(photo("PNG"), MAX_PARTS), InvalidImage, "the image has more than 20,000 PNG chunks"),
        (blocks(photo("GIF"), MAX_PARTS), InvalidImage, "the image has more than 20,000 GIF blocks"),
        (directory(4000, 40_000), InvalidImage, "the values of the image's tags have 160,000,000 bytes in a file or"),
        (directory(5000, 1), InvalidImage, "the image's directory has 5,000 tags; at most 4,096 are allowed"),
        (exif_jpeg(directory(4000, 40_000)), InvalidImage, "the values of the image's tags have 160,000,000 bytes"),
    ],
    ids=["scans", "segments", "stray", "fill", "chunks", "blocks", "overlapping", "tags", "exif"],
)  # fmt: skip
def test_structures_without_end_are_refused_before_a_decoder_sees_them(
    data: bytes, error: type[Mu2NetError], told: str
) -> None:
    with pytest.raises(error, match=f"^{told}"):
        load_pixels(data, 8)


@pytest.mark.parametrize(
    "crowd",
    [lambda: segments(photo(), 900), lambda: chunks(photo("PNG"), 900), lambda: blocks(photo("GIF"), 900)],
    ids=["segments", "chunks", "blocks"],
)
def test_many_parts_within_the_limits_change_no_pixel(crowd: Callable[[], bytes]) -> None:
    data = crowd()
    plain = photo({b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"GI": "GIF"}[data[:2]])
    assert (load_pixels(data, 8) == load_pixels(plain, 8)).all()


def test_a_comment_between_scans_hides_none_of_them() -> None:
    data = with_scans(MAX_SCANS)
    start = data.rindex(b"\xff\xda")
    hidden = data[:start] + b"\xff\xfe\0\4\xff\xd9" + data[start:-2] + data[start:]
    with pytest.raises(ImageTooLarge, match="more than 100 scans"):
        image_cost(hidden)


def test_what_follows_the_end_of_a_jpeg_counts_for_nothing() -> None:
    assert image_cost(photo(progressive=True) + b"\xff\xda" * 1000).passes == 10
