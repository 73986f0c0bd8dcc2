"""Images that attackers and the healthy client send, made here."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image

BOMB_SIDE = 7000  # pixels: 49 megapixels, just below the default limit


def tiny_photo(seed: int = 0, size: int = 64, kind: str = "JPEG") -> bytes:
    """Return a small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def empty_png(side: int = BOMB_SIDE) -> bytes:
    """Return a black PNG: a few kilobytes that unpack to `side` x `side` pixels."""
    return encoded(Image.new("RGB", (side, side)), "PNG")


def progressive_bomb(scans: int, side: int = BOMB_SIDE) -> bytes:
    """Return a progressive grey JPEG whose scans after the first refine nothing, each over all of its blocks."""
    blocks = ((side + 7) // 8) ** 2
    runs = -(-blocks // 32767)
    ends = [blocks * (index + 1) // runs - blocks * index // runs - 2**14 for index in range(runs)]
    empty = b"".join(
        [
            _segment(0xDA, b"\1\1\0\1\x3f\0"),
            _packed("".join(f"0{length:014b}" for length in ends)),  # end-of-band runs of 16,384 to 32,767 blocks
        ]
    )
    head = [
        b"\xff\xd8",
        _segment(0xDB, b"\0" + b"\1" * 64),
        _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
        _segment(0xC4, b"\0" + bytes([1, *[0] * 15]) + b"\0"),
        _segment(0xC4, b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xe0\0"),
        _segment(0xDA, b"\1\1\0\0\0\0"),
        _packed("0" * blocks),
    ]
    return b"".join(head) + empty * scans + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _packed(bits: str) -> bytes:
    """Return entropy-coded bits, filled up with ones."""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
