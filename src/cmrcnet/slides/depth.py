"""Colour of more than 8 bits a channel: scaled to 8 by the depth that the file states, or refused.

A camera of 12 bits often writes 0 to 4095 into samples of 16 bits. Without a stated depth these look like a slide that
is nearly black, and nothing tells them from one: full 16-bit pictures are recognised by values in the upper half.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrcnet.errors import BadInput

FULL = (1 << 16) - 1
"""Largest value of 16 bits."""
_HEAD_BYTES = 1 << 16
_SIZES = b"\xff\x4f\xff\x51"  # of a JPEG 2000 codestream; the depth of its first channel is 42 bytes on


def picture_bits(path: Path, kind: str | None) -> int:
    """Bits of a channel that the header of a PNG or JPEG 2000 states; 8 for other kinds of picture."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if kind == "PNG":
        return head[24] if len(head) > 24 else 8
    if kind == "JPEG2000" and 0 <= (start := head.find(_SIZES)) < len(head) - 42:
        return (head[start + 42] & 0x7F) + 1
    return 8


def read_deep_picture(path: Path, kind: str, bits: int) -> np.ndarray:
    """Decode a PNG or JPEG 2000 of 9 to 16 bits a channel.

    Returns
    -------
    numpy.ndarray, shape (height, width, 3 or 4), uint8

    Raises
    ------
    BadInput
        It is grey, cannot be decoded, or its depth is unknown.
    """
    import imagecodecs

    try:
        decode = imagecodecs.png_decode if kind == "PNG" else imagecodecs.jpeg2k_decode
        values = np.asarray(decode(path.read_bytes()))
    except Exception as error:  # whatever a codec raises for damaged bytes
        raise BadInput(path, "a picture", f"its pixels cannot be decoded ({error})") from error
    if values.ndim != 3 or values.shape[2] not in (3, 4) or values.dtype != np.uint16:
        raise BadInput(path, "a slide", f"it holds {bits} bits a pixel and is no RGB; convert it to 8-bit RGB")
    if bits == 16 and (fault := depth_fault(int(values[..., :3].max(initial=0)))):
        raise BadInput(path, "a slide", fault)
    return to_8_bits(values, (1 << bits) - 1, path)


def depth_fault(largest: int) -> str:
    """Why samples of 16 bits cannot be scaled when `largest` is the largest of them: the end of a sentence, or ""."""
    if largest > FULL // 2:
        return ""
    return (
        f"its samples of 16 bits reach only {largest} of {FULL}, so how many bits the camera had is unknown and it "
        "would be read too dark; convert it to 8-bit RGB, or state the depth (TIFF: MaxSampleValue; OME: "
        "SignificantBits)"
    )


def to_8_bits(values: np.ndarray, top: int, path: Path) -> np.ndarray:
    """Scale 0 to `top` to 0 to 255, rounded.

    Parameters
    ----------
    values : array, uint16
    top : int
        The value of white.
    path : Path
        Of the slide, for the message.

    Raises
    ------
    BadInput
        A value is larger.
    """
    largest = int(values.max(initial=0))
    if largest > top:
        raise BadInput(path, "a slide", f"a sample is {largest}, above the {top} that it states as the largest")
    table = (np.arange(top + 1, dtype=np.int64) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]
