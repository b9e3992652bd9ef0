"""A small picture as rows of pixels: rectangles, words, and a PNG of it by the standard library alone.

PNG: https://www.w3.org/TR/png-3/ (8-bit RGB, filter 0). Letters are 5×7 dots, one byte a column, lowest bit on top.
"""

from __future__ import annotations

import struct
import zlib

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
GLYPH_WIDTH, GLYPH_HEIGHT = 6, 7  # with the gap to the next letter
_FIRST = 32
_GLYPHS = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0005030000"  # space to '
    "001c224100 0041221c00 14083e0814 08083e0808 0050300000 0808080808 0060600000 2010080402"  # ( to /
    "3e5149453e 00427f4000 4261514946 2141454b31 1814127f10 2745454539 3c4a494930 0171090503"  # 0 to 7
    "3649494936 064949291e 0036360000 0056360000 0814224100 1414141414 0041221408 0201510906"  # 8 to ?
    "3249794141 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a"  # @ to G
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e"  # H to O
    "7f09090906 3e4151215e 7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f"  # P to W
    "6314081463 0708700807 6151494543 007f414100 0204081020 0041417f00 0402010204 4040404040"  # X to _
    "0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418 087e090102 0c5252523e"  # ` to g
    "7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"  # h to o
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c"  # p to w
    "4428102844 0c5050503c 4464544c44 0008364100 00007f0000 0041360800 1008081008"  # x to ~
)


class Picture:
    """Pixels of one background colour to draw on."""

    def __init__(self, width: int, height: int, background: Color = WHITE) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(bytes(background) * (width * height))

    def rectangle(self, left: int, top: int, width: int, height: int, color: Color) -> None:
        """Fill a rectangle; what lies outside the picture is cut off."""
        left, right = max(left, 0), min(left + width, self.width)
        row = bytes(color) * max(right - left, 0)
        for y in range(max(top, 0), min(top + height, self.height)):
            at = 3 * (y * self.width + left)
            self._pixels[at : at + len(row)] = row

    def text(self, left: int, top: int, words: str, *, scale: int = 2, color: Color = BLACK) -> None:
        """Write one line; a letter that the font lacks is a `?`."""
        for position, letter in enumerate(words):
            code = ord(letter) - _FIRST
            at = 5 * (code if 0 <= code < len(_GLYPHS) // 5 else ord("?") - _FIRST)
            for x, column in enumerate(_GLYPHS[at : at + 5]):
                for y in range(GLYPH_HEIGHT):
                    if column >> y & 1:
                        dot = left + scale * (GLYPH_WIDTH * position + x)
                        self.rectangle(dot, top + scale * y, scale, scale, color)

    def pixel(self, x: int, y: int) -> Color:
        """Return the colour at a place."""
        red, green, blue = self._pixels[3 * (y * self.width + x) :][:3]
        return red, green, blue

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        stride = 3 * self.width
        lines = b"".join(b"\0" + self._pixels[y * stride : (y + 1) * stride] for y in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def text_width(words: str, scale: int = 2) -> int:
    """Return how many pixels `Picture.text` needs for a line."""
    return scale * GLYPH_WIDTH * len(words)


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
