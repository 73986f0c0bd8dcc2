"""From encoded image bytes to the pixels a route takes: the only definition, for training and serving alike.

A route's first subgraph takes uint8 pixels and scales them itself, so all that happens outside of a
graph is decoding, turning upright, flattening to RGB and resizing to a square. Aspect ratio is given
up, as in the µ2Net reference: nothing is cropped away.
"""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image

from models.errors import ImageTooLarge, InvalidImage, InvalidRoute
from models.image_cost import PNG_SIGNATURE, image_cost, png_chunks

PLAIN_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
CONTAINER_FORMATS = ("AVIF", "HEIF")  # files that begin with `ftyp`
FORMATS = PLAIN_FORMATS + CONTAINER_FORMATS  # decoders that strangers' bytes may reach
CONTAINER_BRANDS = frozenset(  # of files that begin with `ftyp`: AVIF's and HEIF's own, and those of both
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
PNG_UNUSED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})  # texts and colour profiles: no pixel depends on them
PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that may say how the image is turned
MAX_ORIENTATION_BYTES = 2**20  # of such a text when unpacked
MAX_ORIENTATION_TEXTS = 4  # looked at; the others are left out
SIGNIFICANT_BITS = "mu2net significant bits"  # where a PNG's chunk sBIT is noted in Pillow's `info`
RANGES = (255, 1023, 4095, 16383, 65535)  # highest values of greys of 8, 10, 12, 14 and 16 bits
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 258, 281, 341  # TIFF's tags
UPRIGHT = {  # EXIF's orientation: how to turn the stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DRAFT_SCALE = 2  # JPEG files are decoded at the smallest scale with this many times the wanted pixels a side
CHECK_SIZE = 8  # pixels; small, so that JPEG files are checked at their coarsest scale
PLAIN_MODES = ("L", "RGB", "RGBA")  # that become RGB whatever their pixels are


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one encoded image may be at most."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels of 0 to 255 are scaled: `(pixel / 255 - mean) / std` per RGB channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InvalidRoute(
                f"preprocessing takes three means and three positive standard deviations, not {self.mean}, {self.std}"
            )


def load_pixels(
    data: bytes, image_size: int, limits: ImageLimits = ImageLimits(), *, is_plain: bool = False
) -> UInt8[np.ndarray, "size size 3"]:
    """Decode an image file and return it upright, as RGB, resized to a square of `image_size` pixels.

    The first frame of an animation counts; transparency is laid on white; deeper greys are brought
    to 8 bits by their range, see `_highest_value`.

    Args:
        data: the file.
        image_size: of the square, pixels a side.
        limits: of the file.
        is_plain: `image_cost` has found it to be so.

    Raises:
        InvalidImage: not an image of a known format, a truncated or damaged one, or one of too many parts.
        ImageTooLarge: more bytes or pixels than `limits`, or more scans than a JPEG may have.
    """
    image = _open(data, limits, is_plain)
    with _decoding(image):
        _draft(image, image_size)
        turned = upright(image)
        _check_pixels(*turned.size, limits)  # a HEIF file's header may announce fewer than its stream has
        square = _to_rgb(turned).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(square)


def check_image(data: bytes, limits: ImageLimits = ImageLimits()) -> None:
    """Raise what `load_pixels` would raise. All of the file is decoded, but nothing is made of what cannot fail."""
    image = _open(data, limits)
    with _decoding(image):
        _draft(image, CHECK_SIZE)
        image.load()
        _check_pixels(*image.size, limits)
        if image.mode not in PLAIN_MODES or "transparency" in image.info:
            _to_rgb(image)


@contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    try:
        yield
    except (MemoryError, ImageTooLarge):
        raise
    except Exception as error:  # the decoders raise whatever they like on hostile bytes: all of it means damaged
        reason = " ".join(str(error).split())
        raise InvalidImage(
            f"the {image.format} image is truncated or damaged ({reason}): send a whole, readable file"
        ) from error


def _draft(image: Image.Image, image_size: int) -> None:
    """Have a JPEG file decoded at the coarsest scale that will do."""
    if image.format == "JPEG":  # of a HEIF file it would be the preview, which may show something else
        image.draft(image.mode, (DRAFT_SCALE * image_size, DRAFT_SCALE * image_size))


def fit_pixels(
    pixels: UInt8[np.ndarray, "height width 3"], image_size: int, limits: ImageLimits = ImageLimits()
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize decoded RGB pixels as `load_pixels` does those of a file.

    Raises:
        ImageTooLarge: more pixels than `limits`.
    """
    height, width, _ = pixels.shape
    _check_pixels(width, height, limits)
    square = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(square)


def _open(data: bytes, limits: ImageLimits, is_plain: bool = False) -> Image.Image:
    if not data:
        raise InvalidImage(f"the image is empty (0 bytes): send one of {', '.join(FORMATS)}")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes; at most {limits.max_bytes:,} are allowed: send a smaller file"
        )
    if not is_plain:
        image_cost(data)
    formats: tuple[str, ...] = PLAIN_FORMATS
    if data.startswith(PNG_SIGNATURE):
        data = _without_unused(data)
    elif data[4:8] == b"ftyp":
        _register_heif()
        formats = CONTAINER_FORMATS
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"{error}; at most {limits.max_pixels:,} pixels are allowed: scale it down") from error
    except Exception as error:  # as above: what a header parser raises on hostile bytes is not ours to enumerate
        raise InvalidImage(
            f"the {len(data):,} bytes are not a readable image ({type(error).__name__}): send one of "
            f"{', '.join(FORMATS)}"
        ) from error
    _check_pixels(*image.size, limits)
    if image.format == "PNG" and image.mode.startswith("I"):
        image.info[SIGNIFICANT_BITS] = _significant_bits(data)
    return image


@cache
def _register_heif() -> None:
    from pillow_heif import register_heif_opener  # slow to import, and for one format only

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


@cache
def decoder_version() -> str:
    """Return what names the decoders: pixels decoded by others may be different ones."""
    return f"{PIL.__version__} {version('pillow-heif')}"


def _without_unused(data: bytes) -> bytes:
    """Return a PNG without its texts and colour profile: Pillow refuses whole images that have much of them."""
    dropped: list[tuple[int, int]] = []
    left = MAX_ORIENTATION_TEXTS
    for kind, start, end in png_chunks(data):
        if kind not in PNG_UNUSED:
            continue
        keyword = next((word for word in PNG_ORIENTATION if data.startswith(word, start + 8)), None)
        if keyword is not None and left:
            left -= 1
            if _is_small(kind, data[start + 8 + len(keyword) : end - 4]):
                continue
        dropped.append((start, end))
    if not dropped:
        return data
    starts = [0, *(end for _, end in dropped)]
    ends = [*(start for start, _ in dropped), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))


def _is_small(kind: bytes, content: bytes) -> bool:
    """Whether what follows a text's keyword unpacks within Pillow's own limit."""
    if kind == b"tEXt" or (kind == b"iTXt" and content[:1] != b"\1"):
        return len(content) < MAX_ORIENTATION_BYTES
    packed = content[1:] if kind == b"zTXt" else content[2:].split(b"\0", 2)[-1]  # after language and its keyword
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_ORIENTATION_BYTES)) < MAX_ORIENTATION_BYTES
    except zlib.error:
        return False


def _significant_bits(data: bytes) -> int:
    """Return the bits of a grey that a PNG's sBIT chunk declares; 0 if it has none."""
    for kind, start, end in png_chunks(data):
        if kind == b"sBIT" and end - start > 12:
            return min(data[start + 8], 16)
        if kind == b"IDAT":
            break
    return 0


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels; at most {limits.max_pixels:,} in all are allowed: scale it down"
        )


def upright(image: Image.Image) -> Image.Image:
    """Return an image with its pixels turned as EXIF says, once they are decoded.

    Pillow's own `exif_transpose` also rewrites the metadata, and fails where that is damaged.
    """
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # its parser raises whatever it likes; the pixels are whole, so damaged metadata means none
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # a copy of 50 megapixels has 200 MB
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Bring 10 to 16-bit, 32-bit and float greys to 8 bits: from 0 to the highest value that they may have."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    highest = _highest_value(image, float(values.max(initial=0)))
    if highest != 255:
        values = values / np.float32(highest / 255) if highest > 1 else values * np.float32(255)
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def _highest_value(image: Image.Image, found: float) -> float:
    """Return the value of white: the smallest of `RANGES` that holds all values, and what the file declares.

    Cameras and X-rays put 10, 12 or 14 bits into files of 16, mostly without a word about it: taken as 0 to 65535
    they would be nearly black. Floats up to 1 are 0 to 1. Values above 65535 are white.

    Args:
        image: opened from a file.
        found: its highest value.
    """
    if image.mode == "F" and found <= 1:
        return 1
    declared = max(found, _declared(image))
    return next((highest for highest in RANGES if declared <= highest), RANGES[-1])


def _declared(image: Image.Image) -> float:
    """Return the highest value that a file says its greys may have; 0 if it says nothing."""
    if image.format == "PNG":
        return float(2 ** image.info.get(SIGNIFICANT_BITS, 0) - 1)
    if image.format != "TIFF":
        return 0
    tags = getattr(image, "tag_v2", {})
    bits = _number(tags.get(BITS_PER_SAMPLE))
    declared = max(_number(tags.get(tag)) for tag in (MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE))
    return max(declared, 2.0**bits - 1 if 8 < bits < 16 else 0)  # of 16 bits, the others may be unused


def _number(value: object) -> float:
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) and np.isfinite(first) else 0.0


def scale_pixels(
    pixels: UInt8[np.ndarray, "batch size size 3"], preprocessing: Preprocessing
) -> Float[np.ndarray, "batch 3 size size"]:
    """Return what a route's embedding works on; the ONNX graphs and the training repeat this formula."""
    factor, offset = scale_constants(preprocessing)
    return np.ascontiguousarray((pixels.astype(np.float32) * factor + offset).transpose(0, 3, 1, 2))


def scale_constants(preprocessing: Preprocessing) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Return `factor` and `offset` with `pixel * factor + offset` equal to the scaling of `preprocessing`."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
