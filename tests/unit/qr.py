"""A reader of QR codes in terminals, for tests: ISO/IEC 18004, alphanumeric mode, level L, no damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
QUIET = 4  # light modules around it
# level L of versions 1 to 40: error correction codewords of a block, and blocks (tables 7 and 9)
CHECKS = [0, 7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28]
CHECKS += [30] * 14
BLOCKS = [
    0,
    1,
    1,
    1,
    1,
    1,
    2,
    2,
    2,
    2,
    4,
    4,
    4,
    4,
    4,
    6,
    6,
    6,
    6,
    7,
    8,
    8,
    9,
    9,
    10,
    12,
    12,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
]
BLOCKS += [19, 19, 20, 21, 22, 24, 25]
MASKS: list[Callable[[int, int], int]] = [
    lambda y, x: (y + x) % 2,
    lambda y, x: y % 2,
    lambda y, x: x % 3,
    lambda y, x: (y + x) % 3,
    lambda y, x: (y // 2 + x // 3) % 2,
    lambda y, x: y * x % 2 + y * x % 3,
    lambda y, x: (y * x % 2 + y * x % 3) % 2,
    lambda y, x: ((y + x) % 2 + y * x % 3) % 2,
]
Matrix = list[list[int]]


def matrix_of(printed: str) -> Matrix:
    """Return the modules of half blocks, light ones printed, without the quiet zone: 1 is dark."""
    halves = {" ": (1, 1), "█": (0, 0), "▀": (0, 1), "▄": (1, 0)}
    rows: Matrix = []
    for line in printed.rstrip("\n").split("\n"):
        pairs = [halves[char] for char in line]
        rows += [[upper for upper, _ in pairs], [lower for _, lower in pairs]]
    size = len(rows[0])
    rows = rows[:size]
    inside = range(QUIET, size - QUIET)
    assert not any(rows[y][x] for y in range(size) for x in range(size) if y not in inside or x not in inside)
    return [[rows[y][x] for x in inside] for y in inside]


def _centres(version: int, size: int) -> list[int]:
    if version == 1:
        return []
    count = version // 7 + 2
    step = 26 if version == 32 else (version * 4 + count * 2 + 1) // (count * 2 - 2) * 2
    return [6, *sorted(size - 7 - step * n for n in range(count - 1))]


def _is_function(version: int, size: int) -> Matrix:
    found = [[0] * size for _ in range(size)]
    areas = [(0, 0, 9, 9), (0, size - 8, 9, 8), (size - 8, 0, 8, 9), (6, 0, 1, size), (0, 6, size, 1)]
    centres = _centres(version, size)
    for y in centres:
        for x in centres:
            if (y, x) not in ((6, 6), (6, size - 7), (size - 7, 6)):
                areas.append((y - 2, x - 2, 5, 5))
    if version >= 7:
        areas += [(0, size - 11, 6, 3), (size - 11, 0, 3, 6)]
    for top, left, height, width in areas:
        for y in range(top, top + height):
            found[y][left : left + width] = [1] * width
    return found


def _modules(size: int) -> Iterator[tuple[int, int]]:
    up = True
    for right in [x for x in range(size - 1, 0, -2) if x > 6] + [5, 3, 1]:
        for y in range(size - 1, -1, -1) if up else range(size):
            yield from ((y, right), (y, right - 1))
        up = not up


def _data(codewords: list[int], version: int) -> list[int]:
    blocks, each = BLOCKS[version], CHECKS[version]
    total = len(codewords) - blocks * each
    short, longer = total // blocks, total % blocks
    sizes = [short] * (blocks - longer) + [short + 1] * longer
    found: list[list[int]] = [[] for _ in sizes]
    stream = iter(codewords)
    for at in range(short + 1):
        for block, size in zip(found, sizes, strict=True):
            if at < size:
                block.append(next(stream))
    return [word for block in found for word in block]


def read_qr(printed: str) -> str:
    """Return the text of a QR code as a terminal shows it."""
    matrix = matrix_of(printed)
    size = len(matrix)
    version = (size - 17) // 4
    places = [(8, x) for x in (0, 1, 2, 3, 4, 5, 7, 8)] + [(y, 8) for y in (7, 5, 4, 3, 2, 1, 0)]
    form = int("".join(str(matrix[y][x]) for y, x in places), 2) ^ 0x5412
    assert form >> 13 == 1, "level L"
    mask, fixed = MASKS[form >> 10 & 7], _is_function(version, size)
    bits = "".join(str(matrix[y][x] ^ (mask(y, x) == 0)) for y, x in _modules(size) if not fixed[y][x])
    words = [int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8)]
    stream = "".join(f"{word:08b}" for word in _data(words, version))
    assert stream[:4] == "0010", "alphanumeric"
    width = 9 if version < 10 else 11 if version < 27 else 13
    left, at, text = int(stream[4 : 4 + width], 2), 4 + width, ""
    while left:
        many = min(2, left)
        value = int(stream[at : at + (11 if many == 2 else 6)], 2)
        text += ALPHABET[value // 45] + ALPHABET[value % 45] if many == 2 else ALPHABET[value]
        at, left = at + 11, left - many
    return text
