"""Files as they come out of an accident."""

from pathlib import Path

import numpy as np


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))] if content else b""


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        if changed:
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) + 1))
    return content[:start] + bytes(len(content) - start)


def grown(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 40)))


KINDS = {
    "cut": cut,
    "flipped": flipped,
    "zeroed": zeroed,
    "grown": grown,
    "empty": lambda content, rng: b"",
    "text": lambda content, rng: b"not what it was\n",
    "null": lambda content, rng: b"null",
    "list": lambda content, rng: b"[1]",
}


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file at random, or take it away; tells how."""
    kind = rng.choice([*KINDS, "gone"])
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(KINDS[kind](path.read_bytes(), rng))
    return str(kind)
