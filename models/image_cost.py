"""What an encoded image costs to decode, read from its structure without decoding it.

Formats repeat parts as often as a file likes: a JPEG of 0.9 MB kept a decoder busy for 216 s with thousands of scans.
So the parts are counted before any decoder sees them, and `MAX_...` are hard limits for training and serving alike.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import ImageTooLarge, InvalidImage

MAX_SCANS = 100  # of a JPEG; libjpeg's own progressive script has 10. djpeg's documentation advises this limit
MAX_PARTS = 20_000  # chunks, segments or blocks: Pillow reads each in Python, about 3 µs (measured)
MAX_STRAY_BYTES = 2**16  # between the segments of a JPEG: Pillow skips them one by one
MAX_STRIPS = 2**17  # strips or tiles of a TIFF; one row each of 65,535 rows is half of it
MAX_TAGS = 4096  # of one directory of TIFF or EXIF
MAX_TAG_SHARE = 4  # a directory's values may have so many times the bytes of the file: values may overlap
TAG_FREE_BYTES = 2**20  # that they may have however small the file is
QUICK_PARTS = 1000  # of an image that a quick look calls plain
QUICK_BYTES = 2**21  # the same of a whole file: finding the scans of 2 MiB takes up to 20 ms (measured)
MAX_SIZES = 1000  # boxes `ispe` of an AVIF or HEIF file that are looked at

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xDE}  # markers from which Pillow takes the size
JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC3, 0xC9, 0xCB})  # with all colours in one scan, there is only this one
JPEG_ALONE = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # markers without a length behind them
JPEG_SCAN, JPEG_END, JPEG_APP1, JPEG_APP2 = 0xDA, 0xD9, 0xE1, 0xE2
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # within a scan's data: neither a byte of them nor a restart
TIFF_BYTES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)  # of one value, by the number of its type
WIDTH, HEIGHT, STRIPS, TILES = 256, 257, 273, 324  # TIFF's tags


@dataclass(frozen=True, slots=True)
class ImageCost:
    """`pixels` are width times height of what is decoded, 0 if a quick look did not find them."""

    pixels: int
    passes: int = 1  # over all pixels: the scans of a JPEG
    is_plain: bool = False  # the header tells all: no other part of the file takes time

    @property
    def work(self) -> int:
        return self.pixels * self.passes


def image_cost(data: bytes, *, is_quick: bool = False) -> ImageCost:
    """Return what decoding the first frame of an image file costs. A damaged file costs what its whole parts do.

    Args:
        data: the file.
        is_quick: look at the first parts only, within 20 ms for any bytes. What has more is not plain; nor are formats
            whose header does not tell all.

    Raises:
        ImageTooLarge: a JPEG with too many scans.
        InvalidImage: too many parts of another kind.
    """
    if data.startswith(PNG_SIGNATURE):
        return _png(data, is_quick)
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg(data, is_quick)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data, is_quick)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data, is_quick)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data[4:8] == b"ftyp":
        return _container(data)
    return ImageCost(0, is_plain=True)  # no format of ours: it is refused by its first bytes


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind, start and end of each chunk of a PNG, up to where the file is damaged."""
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return
        yield data[start + 4 : start + 8], start, end
        start = end


def _is_too_many(count: int, is_quick: bool, what: str) -> bool:
    """Whether a quick look ends here; InvalidImage beyond the hard limit."""
    if is_quick:
        return count > QUICK_PARTS
    if count > MAX_PARTS:
        raise InvalidImage(
            f"the image has more than {MAX_PARTS:,} {what}; at most {MAX_PARTS:,} are allowed: save it again with an "
            "image editor"
        )
    return False


def _png(data: bytes, is_quick: bool) -> ImageCost:
    pixels = 0
    for count, (kind, start, end) in enumerate(png_chunks(data), 1):
        if kind == b"IHDR" and end - start >= 20:  # Pillow takes the last one
            width, height = struct.unpack_from(">II", data, start + 8)
            pixels = max(pixels, width * height)
        elif kind == b"eXIf":
            _check_exif(data[start + 8 : end - 4])
        if _is_too_many(count, is_quick, "PNG chunks"):
            return ImageCost(pixels)
    return ImageCost(pixels, is_plain=True)


def _jpeg(data: bytes, is_quick: bool) -> ImageCost:
    """Follow the segments as Pillow does up to the first scan, and as libjpeg does from there on."""
    at, count, stray, pixels, frame, colors = 2, 0, 0, 0, 0, 0
    exif = b""
    while (found := _next_marker(data, at)) is not None:
        start, code = found
        count += 1
        stray += start - at
        if stray > MAX_STRAY_BYTES:
            raise InvalidImage(
                f"the JPEG image has {stray:,} bytes between its segments; at most {MAX_STRAY_BYTES:,} are allowed: "
                "save it again with an image editor"
            )
        if _is_too_many(count, is_quick, "JPEG segments"):
            return ImageCost(pixels)
        if code == JPEG_SCAN:
            break
        if code in JPEG_ALONE:
            at = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        if code in JPEG_FRAMES and start + 10 <= len(data):
            height, width = struct.unpack_from(">HH", data, start + 5)
            pixels, frame, colors = max(pixels, width * height), code, data[start + 9]
        elif code == JPEG_APP1 and data.startswith(b"Exif\0\0", start + 4):
            exif += data[start + 10 : start + 2 + length]
        elif code == JPEG_APP2 and data.startswith(b"MPF\0", start + 4):
            _check_exif(data[start + 8 : start + 2 + length])
        at = start + 2 + max(length, 2)
    _check_exif(exif)
    if found is None:
        return ImageCost(pixels, is_plain=True)  # without any scan: it is refused
    if frame in JPEG_SEQUENTIAL and data[start + 4 : start + 5] == bytes([colors]):
        return ImageCost(pixels, is_plain=True)
    if is_quick and len(data) > QUICK_BYTES:
        return ImageCost(pixels)
    return ImageCost(pixels, _scans(data, start, is_quick), is_plain=True)


def _next_marker(data: bytes, at: int) -> tuple[int, int] | None:
    """Return the start and the code of the next marker of a JPEG's head; None at the end of the file."""
    start = data.find(b"\xff", at)
    while 0 <= start < len(data) - 1:
        code = data[start + 1]
        if code not in {0x00, 0xFF}:
            return start, code
        if start - at > MAX_STRAY_BYTES:
            return start, code  # counted as stray by who asked
        start = data.find(b"\xff", start + 1)
    return None


def _scans(data: bytes, start: int, is_quick: bool) -> int:
    """Return how many scans a JPEG has from the marker at `start` on."""
    scans = count = 0
    while (found := JPEG_MARKER.search(data, start)) is not None:
        start, code = found.start(), data[found.start() + 1]
        count += 1
        if code == JPEG_END or _is_too_many(count, is_quick, "JPEG segments"):
            break
        scans += code == JPEG_SCAN
        if scans > MAX_SCANS:
            raise ImageTooLarge(
                f"the JPEG image has more than {MAX_SCANS} scans; at most {MAX_SCANS} are allowed: save it as a "
                "baseline JPEG, which has one"
            )
        start += 2 if code in JPEG_ALONE else 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
    return max(scans, 1)


def _gif(data: bytes, is_quick: bool) -> ImageCost:
    if len(data) < 13:
        return ImageCost(0, is_plain=True)
    width, height = struct.unpack_from("<HH", data, 6)
    at = 13 + _palette_bytes(data[10])
    count = 0
    while at < len(data):  # up to the first frame, the only one that is decoded
        count += 1
        if _is_too_many(count, is_quick, "GIF blocks"):
            return ImageCost(width * height)
        kind = data[at]
        if kind == 0x2C and at + 10 <= len(data):  # a frame may be larger than the screen
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            return ImageCost(max(width, left + wide) * max(height, top + high), is_plain=True)
        at += 2 if kind == 0x21 else 1
        while kind == 0x21 and at < len(data) and data[at]:  # an extension's blocks, each with its length before it
            at += 1 + data[at]
            count += 1
            if _is_too_many(count, is_quick, "GIF blocks"):
                return ImageCost(width * height)
        at += kind == 0x21
    return ImageCost(width * height, is_plain=True)


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0


def _webp(data: bytes, is_quick: bool) -> ImageCost:
    kind = data[12:16]
    if len(data) < 30:
        return ImageCost(0, is_plain=True)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageCost((width & 0x3FFF) * (height & 0x3FFF), is_plain=True)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ImageCost(((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1), is_plain=True)
    if kind != b"VP8X":
        return ImageCost(0, is_plain=True)
    pixels = (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
    at, count = 12, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            _check_exif(data[at + 8 : at + 8 + size].removeprefix(b"Exif\0\0"))
        at += 8 + size + size % 2
        count += 1
        if _is_too_many(count, is_quick, "WebP chunks"):
            return ImageCost(pixels)
    is_animated = bool(data[20] & 2)
    return ImageCost(pixels, is_plain=not is_animated)


def _bmp(data: bytes) -> ImageCost:
    if len(data) < 34:
        return ImageCost(0, is_plain=True)
    if int.from_bytes(data[14:18], "little") == 12:
        width, height, packing = *struct.unpack_from("<HH", data, 18), 0
    else:
        width, height, _, _, packing = struct.unpack_from("<iiHHI", data, 18)
    return ImageCost(abs(width) * abs(height), is_plain=packing in {0, 3})  # others Pillow unpacks in Python


def _container(data: bytes) -> ImageCost:
    """Return the largest size that an AVIF or HEIF file announces; its stream may have more."""
    pixels, at = 0, 0
    for _ in range(MAX_SIZES):
        at = data.find(b"ispe", at) + 4
        if at < 4 or at + 12 > len(data):
            break
        width, height = struct.unpack_from(">II", data, at + 4)
        pixels = max(pixels, width * height)
    return ImageCost(pixels)


def _tiff(data: bytes) -> ImageCost:
    """Never plain: what is packed in a TIFF's strips may be a JPEG or whatever else libtiff knows."""
    found = _check_directory(data)
    strips = max(found.get(STRIPS, (0, 0))[0], found.get(TILES, (0, 0))[0])
    if strips > MAX_STRIPS:
        raise InvalidImage(
            f"the TIFF image has {strips:,} strips or tiles; at most {MAX_STRIPS:,} are allowed: save it again with an "
            "image editor"
        )
    return ImageCost(found.get(WIDTH, (0, 0))[1] * found.get(HEIGHT, (0, 0))[1])


def _check_exif(data: bytes) -> None:
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        _check_directory(data)


def _check_directory(data: bytes) -> dict[int, tuple[int, int]]:
    """Return the number of values, and the value of 2 or 4 bytes that may stand there, of each tag of the first one.

    Pillow copies each tag's value, and nothing keeps 65,535 tags from having the same 20 MB for their value.

    Raises:
        InvalidImage: too many tags, or values that together are much larger than the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in {b"+\0", b"\0+"}
    found: dict[int, tuple[int, int]] = {}
    in_all = 0
    try:
        (at,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", data, 8 if is_big else 4)
        (count,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}H", data, at)
        at += 8 if is_big else 2
        if count > MAX_TAGS:
            raise InvalidImage(
                f"the image's directory has {count:,} tags; at most {MAX_TAGS:,} are allowed: save it again with an "
                "image editor"
            )
        width = 8 if is_big else 4
        for _ in range(count):
            tag, kind, values = struct.unpack_from(f"{order}HHQ" if is_big else f"{order}HHI", data, at)
            at += 4 + width
            size = values * (TIFF_BYTES[kind] if kind < len(TIFF_BYTES) else 1)
            (value,) = struct.unpack_from(f"{order}H" if kind == 3 else f"{order}I", data, at)
            found[tag] = (values, value)
            if size > width and size <= len(data):  # a value that ends behind the file ends Pillow's reading
                in_all += size
            at += width
    except struct.error:  # the directory is cut off: Pillow reads no more of it either
        pass
    if in_all > MAX_TAG_SHARE * len(data) + TAG_FREE_BYTES:
        raise InvalidImage(
            f"the values of the image's tags have {in_all:,} bytes in a file or part of {len(data):,}: they overlap; "
            "save it again with an image editor"
        )
    return found
