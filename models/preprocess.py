"""From encoded image bytes to the pixels a route takes: the only definition, for training and serving alike.

A route's first subgraph takes uint8 pixels and scales them itself, so all that happens outside of a
graph is decoding, turning upright, flattening to RGB and resizing to a square. Aspect ratio is given
up, as in the µ2Net reference: nothing is cropped away.
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image

from models.errors import ImageTooLarge, InvalidImage, InvalidRoute

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # decoders that strangers' bytes may reach
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


def load_pixels(data: bytes, image_size: int, limits: ImageLimits = ImageLimits()) -> UInt8[np.ndarray, "size size 3"]:
    """Decode an image file and return it upright, as RGB, resized to a square of `image_size` pixels.

    The first frame of an animation counts; transparency is laid on white; deeper greys are brought
    to 8 bits.

    Raises:
        InvalidImage: not an image of a known format, or a truncated or damaged one.
        ImageTooLarge: more bytes or pixels than `limits`.
    """
    image = _open(data, limits)
    try:
        image.draft(image.mode, (DRAFT_SCALE * image_size, DRAFT_SCALE * image_size))
        square = _to_rgb(upright(image)).resize((image_size, image_size), Image.Resampling.BILINEAR)
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise whatever they like on hostile bytes: all of it means damaged
        raise InvalidImage(
            f"the {image.format} image is truncated or damaged ({error}): send a whole, readable file"
        ) from error
    return np.asarray(square)


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


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise InvalidImage(f"the image is empty (0 bytes): send one of {', '.join(FORMATS)}")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes; at most {limits.max_bytes:,} are allowed: send a smaller file"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"{error}; at most {limits.max_pixels:,} pixels are allowed: scale it down") from error
    except Exception as error:  # as above: what a header parser raises on hostile bytes is not ours to enumerate
        raise InvalidImage(
            f"the {len(data):,} bytes are not a readable image ({type(error).__name__}): send one of "
            f"{', '.join(FORMATS)}"
        ) from error
    _check_pixels(*image.size, limits)
    return image


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
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float greys to 8 bits.

    16-bit values go up to 65535. The other modes do not tell: floats up to 1 are taken as 0 to 1, values
    above 255 as 0 to 65535, else they are 8-bit values already.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    highest = values.max(initial=0)
    if image.mode.startswith("I;16") or highest > 255:
        values = values / np.float32(257)
    elif image.mode == "F" and highest <= 1:
        values = values * np.float32(255)
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


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
