"""Ways to damage a file, each drawn from a seeded generator; what fits the kind of file is tried more often."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

Damage = Callable[[np.random.Generator, Path], None]

HOSTILE_TEXTS = (
    "", "NA", "nan", "-1", "0", "1e999", "-inf", "9" * 5000, "0x10", "1_000", "1,5", '"', "'", "\x00", "\ufeff",
    "=1+1", "../../etc/passwd", "a" * 300, "\x1b[31mred", "ä", "\r", "true", "null", "18446744073709551616",
)  # fmt: skip
HOSTILE_YAML = (
    "a: &a [*a]\n", "x: !!timestamp 2020-13-45\n", "x: 2020-13-45\n", "x: !!python/object/apply:os.system ['true']\n",
    "[" * 3000 + "\n", "{a: " * 2000 + "\n", "b: !!binary zzz\n", "? [1, 2]\n: 3\n", "x: " + "9" * 5000 + "\n",
    "a: &b [1,1,1,1]\nc: &d [*b,*b,*b,*b]\ne: &f [*d,*d,*d,*d]\n", "train: null\n", "model: [1, 2]\n", "---\n---\n",
)  # fmt: skip
GIANTS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)


def flip_bit(rng: np.random.Generator, path: Path) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)


def flip_early_bit(rng: np.random.Generator, path: Path) -> None:
    """Flip one bit of the first 600 bytes, where headers stand."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.integers(min(len(data), 600))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)


def cut(rng: np.random.Generator, path: Path) -> None:
    """Keep only the beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(len(data) + 1))])


def zero_block(rng: np.random.Generator, path: Path) -> None:
    """Overwrite a block with zeros, as a failing disk does."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data) + 1))
    length = min(int(rng.choice([1, 8, 64, 512, 4096])), len(data) - start)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def insert_noise(rng: np.random.Generator, path: Path) -> None:
    """Insert random bytes."""
    data = path.read_bytes()
    at = int(rng.integers(len(data) + 1))
    path.write_bytes(data[:at] + rng.bytes(int(rng.choice([1, 4, 100]))) + data[at:])


def double_block(rng: np.random.Generator, path: Path) -> None:
    """Repeat a block."""
    data = path.read_bytes()
    start, stop = np.sort(rng.integers(len(data) + 1, size=2))
    path.write_bytes(data[:stop] + data[start:stop] + data[stop:])


def giant_number(rng: np.random.Generator, path: Path) -> None:
    """Overwrite 2, 4 or 8 bytes with an extreme integer of either byte order."""
    data = bytearray(path.read_bytes())
    kind = str(rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
    size = struct.calcsize(kind)
    if len(data) > size:
        at = (
            int(rng.integers(min(len(data), 4096) - size))
            if rng.random() < 0.5
            else int(rng.integers(len(data) - size))
        )
        value = int(rng.choice(np.array(GIANTS, dtype=np.uint64)))
        data[at : at + size] = struct.pack(kind, value % (1 << 8 * size))
        path.write_bytes(data)


def empty(rng: np.random.Generator, path: Path) -> None:
    """Leave a file of no bytes."""
    path.write_bytes(b"")


def remove(rng: np.random.Generator, path: Path) -> None:
    """Remove the file."""
    path.unlink()


def become_folder(rng: np.random.Generator, path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def become_fifo(rng: np.random.Generator, path: Path) -> None:
    """Put a named pipe in its place, which would wait for ever for a writer."""
    path.unlink()
    os.mkfifo(path)


def become_link(rng: np.random.Generator, path: Path) -> None:
    """Put a dangling link, a link to itself or a link to a device in its place."""
    path.unlink()
    path.symlink_to(str(rng.choice([str(path.parent / "nowhere"), str(path), "/dev/zero", "/dev/null", "/"])))


def become_other(rng: np.random.Generator, path: Path) -> None:
    """Give it the content of another file of the same folder."""
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    if others:
        path.write_bytes(others[int(rng.integers(len(others)))].read_bytes())


def bomb(rng: np.random.Generator, path: Path) -> None:
    """Put 3 GB of text, gzipped to 3 MB, in its place (`bomb.gz` beside the inputs)."""
    path.write_bytes((Path(os.environ["CMRCNET_FUZZ_INPUTS"]) / "bomb.gz").read_bytes())


def hostile_cell(rng: np.random.Generator, path: Path) -> None:
    """Put a hostile text in place of one cell of a table."""
    lines = path.read_bytes().split(b"\n")
    row = int(rng.integers(len(lines)))
    sep = max((b",", b"\t", b";"), key=lines[row].count)
    cells = lines[row].split(sep)
    cells[int(rng.integers(len(cells)))] = str(rng.choice(HOSTILE_TEXTS)).encode()
    lines[row] = sep.join(cells)
    path.write_bytes(b"\n".join(lines))


def rearrange_lines(rng: np.random.Generator, path: Path) -> None:
    """Drop, repeat or cut a line."""
    lines = path.read_bytes().split(b"\n")
    row = int(rng.integers(len(lines)))
    line = lines[row]
    lines[row : row + 1] = [[], [line, line], [line[: len(line) // 2]], [line, b""]][int(rng.integers(4))]
    path.write_bytes(b"\n".join(lines))


def open_quote(rng: np.random.Generator, path: Path) -> None:
    """Open a quote at the start of one cell and never close it."""
    text = path.read_bytes()
    marks = [i for i, byte in enumerate(text) if byte in b",\t\n"]
    at = marks[int(rng.integers(len(marks)))] + 1 if marks else 0
    path.write_bytes(text[:at] + b'"' + text[at:])


def recode(rng: np.random.Generator, path: Path) -> None:
    """Write the text with other line ends or in another encoding."""
    text = path.read_bytes().decode("utf-8", "replace")
    way = int(rng.integers(6))
    if way < 3:
        path.write_bytes(text.replace("\n", ["\r\n", "\r", "\u2028"][way]).encode())
    else:
        path.write_bytes(text.encode(["utf-16", "utf-8-sig", "utf-32"][way - 3]))


def hostile_yaml(rng: np.random.Generator, path: Path) -> None:
    """Append or prepend YAML that bites."""
    text, extra = path.read_text(), str(rng.choice(HOSTILE_YAML))
    path.write_text(text + extra if rng.random() < 0.5 else extra + text)


def hostile_json(rng: np.random.Generator, path: Path) -> None:
    """Replace one value of a JSON file."""
    try:
        root = json.loads(path.read_text())
    except ValueError:
        return
    node, key, holder = root, None, None
    while isinstance(node, dict | list) and node:
        holder = node
        key = list(node)[int(rng.integers(len(node)))] if isinstance(node, dict) else int(rng.integers(len(node)))
        node = node[key]
        if rng.random() < 0.2:
            break
    if holder is not None:
        values = (None, -1, 0, 10**30, 1e308, "", [], {}, True, "../x", "é" * 400, [[[[]]]], {"a": 1})
        holder[key] = values[int(rng.integers(len(values)))]
    text = json.dumps(root)
    path.write_text(text if rng.random() < 0.9 else "[" * 100_000 + text)


def hostile_h5(rng: np.random.Generator, path: Path) -> None:
    """Change one value, the length, or the whole of one dataset of an HDF5 file; or link it elsewhere."""
    import h5py

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = names[int(rng.integers(len(names)))]
        values = file[name][()]
        way = int(rng.integers(6))
        if way == 0:
            del file[name]
        elif way == 1:
            del file[name]
            file[name] = h5py.ExternalLink("elsewhere.h5", "/x")
        elif way == 2 and np.size(values) > 1:
            del file[name]
            file[name] = values[: len(values) // 2]
        elif way == 3:
            del file[name]
            file[name] = np.zeros((3, 2, 1))
        elif np.size(values) and np.asarray(values).dtype.kind in "iufb":
            changed = np.array(values).reshape(-1)
            extremes = [-1, 0, 1, 2**31 - 1, -(2**31), 10**9]
            if changed.dtype.kind == "f":
                extremes += [np.nan, np.inf, -0.5, 1e30, 0.5]
            with np.errstate(all="ignore"):
                at = int(rng.integers(len(changed)))
                changed[at] = np.array(extremes[int(rng.integers(len(extremes)))]).astype(changed.dtype)
            file[name][...] = changed.reshape(np.shape(values))


def hostile_tag(rng: np.random.Generator, path: Path) -> None:
    """Overwrite type, count or value of one tag of the first directory of a classic TIFF."""
    data = bytearray(path.read_bytes())
    if len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return
    (tags,) = struct.unpack_from(order + "H", data, start)
    at = start + 2 + 12 * int(rng.integers(max(tags, 1)))
    field, kind = [(0, "H"), (2, "H"), (4, "I"), (8, "I")][int(rng.integers(4))]
    if at + 12 <= len(data):
        value = int(rng.choice(np.array(GIANTS[:7], dtype=np.uint64)))
        struct.pack_into(order + kind, data, at + field, value % (1 << 8 * struct.calcsize(kind)))
        path.write_bytes(data)


BYTES: tuple[Damage, ...] = (
    flip_bit, flip_bit, flip_early_bit, flip_early_bit, cut, zero_block, insert_noise, double_block, giant_number,
)  # fmt: skip
FILES: tuple[Damage, ...] = (empty, remove, become_folder, become_fifo, become_link, become_other, bomb)
TEXTS: tuple[Damage, ...] = (hostile_cell, hostile_cell, rearrange_lines, open_quote, recode)
BY_ENDING: dict[str, tuple[Damage, ...]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".gem", ".mtx"), TEXTS),
    **dict.fromkeys((".yaml", ".yml"), (hostile_yaml, hostile_yaml, hostile_cell)),
    **dict.fromkeys((".json", ".geojson"), (hostile_json, hostile_json, hostile_json)),
    **dict.fromkeys((".h5", ".h5ad"), (hostile_h5, hostile_h5, hostile_h5)),
    **dict.fromkeys((".tif", ".tiff"), (hostile_tag, hostile_tag, hostile_tag)),
}


def damage(rng: np.random.Generator, folder: Path, sealed: bool = False) -> str:
    """Damage one file below `folder` once (seldom twice); returns what was done, for the report.

    An HDF5 file that we sealed is not edited through HDF5: a program that writes it again removes the seal.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = files[int(rng.integers(len(files)))]
    done = []
    for _ in range(1 + int(rng.random() < 0.15)):
        if not path.is_file() or path.is_symlink() or not path.stat().st_size:
            break
        fitting = () if sealed and path.suffix == ".h5ad" else BY_ENDING.get(path.suffix, ())
        drawn = rng.random()
        ways = fitting if fitting and drawn < 0.5 else BYTES if drawn < 0.88 else FILES
        way = ways[int(rng.integers(len(ways)))]
        try:
            way(rng, path)
        except (OSError, KeyError, ValueError, RuntimeError):  # a file that is damaged too far for a second damage
            break
        done.append(way.__name__)
    return f"{path.relative_to(folder)}: {' and '.join(done) or 'nothing'}"
