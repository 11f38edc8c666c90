"""ICC profiles and what they mean, computed here and not by the library under test."""

import struct

import numpy as np

from schemas.records import FloatArray

# CIE xy of red, green, blue and white; D65 and D50 as in ICC.1:2022.
D65 = (0.3127, 0.3290)
D50 = (0.3457, 0.3585)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SWAPPED = ((0.30, 0.60), (0.64, 0.33), (0.15, 0.06))

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def _xyz(xy: tuple[float, float]) -> FloatArray:
    return np.array([xy[0] / xy[1], 1.0, (1 - xy[0] - xy[1]) / xy[1]])


def to_d50(primaries: Primaries, white: tuple[float, float]) -> FloatArray:
    """(3, 3): linear RGB to XYZ under D50."""
    columns = np.stack([_xyz(primary) for primary in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, _xyz(white))
    gains = (_BRADFORD @ _xyz(D50)) / (_BRADFORD @ _xyz(white))
    return np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix


def _tag(kind: bytes, content: bytes) -> bytes:
    tag = kind + bytes(4) + content
    return tag + bytes(-len(tag) % 4)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = "made for tests".encode("utf-16-be")
    words = struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(text), 28) + text
    tags = {b"desc": _tag(b"mluc", words), b"cprt": _tag(b"mluc", words), **tags}
    tags |= {b"wtpt": _tag(b"XYZ ", _fixed(_xyz(D50)))}
    place = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    body = b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", place + len(body), len(tag))
        body += tag
    size = place + len(body)
    head = struct.pack(">I", size) + b"lcms" + b"\x04\x30\0\0" + b"mntr" + space + b"XYZ "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(_xyz(D50))
    return head.ljust(128, b"\0") + table + body


def _fixed(numbers: FloatArray) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _gamma(exponent: float) -> bytes:
    return _tag(b"para", struct.pack(">HHi", 0, 0, round(exponent * 65536)))


def rgb_profile(primaries: Primaries, white: tuple[float, float], gamma: float) -> bytes:
    """A profile of three primaries and one exponent."""
    matrix = to_d50(primaries, white)
    tags = {
        name: _tag(b"XYZ ", _fixed(matrix[:, column]))
        for column, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma)))


def grey_profile(gamma: float) -> bytes:
    """A profile of one exponent."""
    return _profile(b"GRAY", {b"kTRC": _gamma(gamma)})


def in_srgb(
    pixels: FloatArray, primaries: Primaries, white: tuple[float, float], gamma: float
) -> FloatArray:
    """(…, 3) 0..255: what colours of such a profile are in sRGB."""
    linear = (pixels / 255) ** gamma
    xyz = linear @ to_d50(primaries, white).T
    back = np.clip(xyz @ np.linalg.inv(to_d50(SRGB, D65)).T, 0, 1)
    low, high = back * 12.92, 1.055 * back ** (1 / 2.4) - 0.055
    return np.where(back <= 0.0031308, low, high) * 255


# Of each ink in the table of a printer's profile.
_NODES = 9


def ink_to_lab(inks: FloatArray) -> FloatArray:
    """(…, 4) inks from 0 to 1 to Lab: a printer whose black is half as dark as it should be."""
    light = np.prod(1 - inks * np.array([0.3, 0.3, 0.05, 0.5]), axis=-1)
    return np.stack(
        [light * 100, (inks[..., 1] - inks[..., 0]) * 60, (inks[..., 2] - 0.5) * 80], axis=-1
    )


def cmyk_profile() -> bytes:
    """A printer's profile: a table from inks to Lab."""
    steps = np.linspace(0, 1, _NODES)
    grid = np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), axis=-1)
    lab = ink_to_lab(grid.reshape(-1, 4))
    codes = np.stack([lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=-1)
    line = struct.pack(">HH", 0, 65535)
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = struct.pack(">BBBB", 4, 3, _NODES, 0) + identity + struct.pack(">HH", 2, 2)
    table += line * 4 + np.clip(codes, 0, 65535).round().astype(">u2").tobytes() + line * 3
    profile = bytearray(_profile(b"CMYK", {b"A2B0": _tag(b"mft2", table)}))
    # A printer, connected through Lab, in the version whose 16-bit Lab the table has.
    profile[8:12] = b"\x02\x40\0\0"
    profile[12:16] = b"prtr"
    profile[20:24] = b"Lab "
    return bytes(profile)
