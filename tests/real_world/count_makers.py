"""One small section's counts in every way that programs write them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

GENES = ("Mbp", "Snap25", "Gfap", "Penk", "Cck", "Calb2", "Pcp4")
SIDE_PX, PITCH_PX = 700, 100


def counts() -> np.ndarray:
    """The source (36, 7) int64: whole counts of 0 to 120 that sum to more than an 8-bit integer holds."""
    return np.random.default_rng(5).integers(0, 121, (36, 7)) * (np.random.default_rng(6).random((36, 7)) < 0.7)


def centres() -> np.ndarray:
    """Centres (36, 2: x, y) in pixels, six rows of six, PITCH_PX apart."""
    y, x = np.divmod(np.arange(36), 6)
    return np.column_stack([100 + PITCH_PX * x, 80 + PITCH_PX * y]).astype(float)


BARCODES = tuple("".join("ACGT"[i // 4**p % 4] for p in range(3)) + "TTGCATTGCAACG-1" for i in range(36))
LEGACY = tuple(f"{10 + i % 6}x{20 + i // 6}" for i in range(36))


@dataclass(frozen=True)
class Case:
    """One section on disk.

    Parameters
    ----------
    write : callable
        Folder to the keyword arguments of `read_section`.
    expected : str
        "equal" or "refused".
    """

    name: str
    write: Callable[[Path], dict[str, object]]
    expected: str = "equal"


def picture(path: Path) -> Path:
    """A flat picture that every centre lies on."""
    Image.fromarray(np.full((SIDE_PX, SIDE_PX, 3), 200, np.uint8)).save(path)
    return path


def h5ads() -> Iterator[Case]:
    """Stored type x matrix kind x where the counts stand."""
    kinds = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    dtypes = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64")
    for dtype, (kind, make), layer in product(dtypes, kinds.items(), (False, True)):
        yield Case(f"h5ad {dtype} {kind}{' in a layer' * layer}", _h5ad(dtype, make, None))
    for name, change in {"a negative count": -1.0, "half a count": 0.5, "NaN": np.nan, "infinity": np.inf}.items():
        for kind, make in kinds.items():
            yield Case(f"h5ad {kind} with {name}", _h5ad("float32", make, change), "refused")
    for kind in ("csr", "csc"):
        yield Case(f"h5ad {kind} with an index twice", _h5ad("float32", kinds[kind], "twice"), "refused")


def _h5ad(dtype: str, make: Callable, change: float | str | None) -> Callable[[Path], dict[str, object]]:
    def write(folder: Path) -> dict[str, object]:
        import anndata
        import h5py
        import pandas as pd

        values = counts().astype(dtype)
        if isinstance(change, float):
            values[3, 2] = change
        table = anndata.AnnData(make(values), pd.DataFrame(index=list(BARCODES)), pd.DataFrame(index=list(GENES)))
        table.obsm["spatial"] = centres()
        table.write_h5ad(folder / "a.h5ad")
        if change == "twice":
            with h5py.File(folder / "a.h5ad", "r+") as file:
                file["X/indices"][3] = file["X/indices"][2]
        return {"source": folder / "a.h5ad", "image": picture(folder / "a.png"), "mpp": 1.0, "spot_diameter_um": 55.0}

    return write


def visiums() -> Iterator[Case]:
    """10x h5 (versions 2 and 3) and mtx folders: integer types, compression, kinds; positions in several texts."""
    for version, dtype, index, squeeze in product(
        (2, 3), ("int32", "int64", "uint16", "uint8"), ("int32", "int64"), (None, "gzip")
    ):
        how = {"version": version, "dtype": dtype, "index": index, "squeeze": squeeze}
        yield Case("10x h5 " + " ".join(map(str, how.values())), _visium(_tenx_h5, **how))
    for field, gz, old, ends in product(("integer", "real"), (False, True), (False, True), ("\n", "\r\n")):
        name = f"mtx {field}{' gz' * gz}{' genes.tsv' * old}{' CRLF' * (ends != chr(10))}"
        yield Case(name, _visium(_mtx, field=field, gz=gz, old=old, ends=ends))
    for positions in ("header", "list", "CRLF", "BOM", "quoted", "UTF-16", "CR only"):
        yield Case(f"positions: {positions}", _visium(_tenx_h5, positions=positions))
    for name, text in {"short": "short", "no number": "word", "repeated barcode": "twice"}.items():
        yield Case(f"positions: {name}", _visium(_tenx_h5, positions=text), "refused")
    for name in ("index too high", "index negative", "indptr falls", "indptr too long", "shape too small", "negative",
                 "index twice"):  # fmt: skip
        yield Case(f"10x h5, {name}", _visium(_tenx_h5, fault=name), "refused")
    for name in (
        "row 0",
        "row too high",
        "fewer entries",
        "more entries",
        "negative",
        "half",
        "giant size",
        "no header",
    ):
        yield Case(f"mtx, {name}", _visium(_mtx, fault=name), "refused")


def _visium(matrix: Callable, positions: str = "header", **how: object) -> Callable[[Path], dict[str, object]]:
    def write(folder: Path) -> dict[str, object]:
        spatial = folder / "outs" / "spatial"
        spatial.mkdir(parents=True)
        matrix(folder / "outs", **how)
        rows = [
            f"{barcode},1,{i // 6},{i % 6},{y:.0f},{x:.0f}"
            for i, (barcode, (x, y)) in enumerate(zip(BARCODES, centres(), strict=True))
        ]
        header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
        if positions == "quoted":
            rows = [",".join(f'"{cell}"' for cell in row.split(",")) for row in rows]
        elif positions == "short":
            rows[4] = ",".join(rows[4].split(",")[:4])
        elif positions == "word":
            rows[4] = rows[4].rsplit(",", 1)[0] + ",here"
        elif positions == "twice":
            rows[4] = rows[5]
        ends = {"CRLF": "\r\n", "CR only": "\r"}.get(positions, "\n")
        text = ends.join(rows if positions == "list" else [header, *rows]) + ends
        encoding = {"BOM": "utf-8-sig", "UTF-16": "utf-16"}.get(positions, "utf-8")
        name = "tissue_positions_list.csv" if positions == "list" else "tissue_positions.csv"
        (spatial / name).write_bytes(text.encode(encoding))
        (spatial / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 65.0}))
        return {"source": folder / "outs", "image": picture(folder / "a.png")}

    return write


def _tenx_h5(
    outs: Path,
    version: int = 3,
    dtype: str = "int32",
    index: str = "int64",
    squeeze: str | None = None,
    fault: str = "",
) -> None:
    import h5py

    matrix = sparse.csc_matrix(counts().T)
    indices, indptr, data = matrix.indices.astype(index), matrix.indptr.astype(index), matrix.data.astype(dtype)
    shape = list(matrix.shape)
    if fault == "index too high":
        indices[3] = 10**6
    elif fault == "index negative":
        indices[3] = -1
    elif fault == "index twice":
        indices[3] = indices[2]
    elif fault == "indptr falls":
        indptr[4] = indptr[6] + 5
    elif fault == "indptr too long":
        indptr[-1] += 10
    elif fault == "shape too small":
        shape[0] = 3
    elif fault == "negative":
        data[3] = -4
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix" if version == 3 else "mm10")
        for name, values in {"data": data, "indices": indices, "indptr": indptr}.items():
            group.create_dataset(name, data=values, compression=squeeze)
        group["shape"] = np.array(shape, np.int32)
        group["barcodes"] = np.array(BARCODES, "S")
        if version == 3:
            group["features/id"] = group["features/name"] = np.array(GENES, "S")
            group["features/feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
        else:
            group["genes"] = group["gene_names"] = np.array(GENES, "S")


def _mtx(
    outs: Path, field: str = "integer", gz: bool = True, old: bool = False, ends: str = "\n", fault: str = ""
) -> None:
    folder = outs / "filtered_feature_bc_matrix"
    folder.mkdir()
    buffer = io.BytesIO()
    scipy_io.mmwrite(buffer, sparse.coo_matrix(counts().T.astype(float)), field=field)
    lines = buffer.getvalue().decode().splitlines()
    size = next(i for i, line in enumerate(lines) if not line.startswith("%"))
    change = {
        "row 0": (size + 3, "0 1 5"), "row too high": (size + 3, "99 1 5"), "negative": (size + 3, "1 1 -5"),
        "half": (size + 3, "1 1 0.5"), "giant size": (size, "4000000000 4000000000 9000000000000"),
        "no header": (0, "7 36 3"),
    }.get(fault)  # fmt: skip
    if fault == "half":
        lines[0] = lines[0].replace("integer", "real")
    if change:
        lines[change[0]] = change[1]
    lines = lines[:-3] if fault == "fewer entries" else [*lines, "1 1 3"] if fault == "more entries" else lines

    def put(name: str, text: str) -> None:
        data = text.encode()
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)

    put("matrix.mtx", ends.join(lines) + ends)
    put("barcodes.tsv", ends.join(BARCODES) + ends)
    features = [f"ENS{i}\t{gene}" + "\tGene Expression" * (not old) for i, gene in enumerate(GENES)]
    put("genes.tsv" if old else "features.tsv", ends.join(features) + ends)


READ = (
    "quoted", "floats", "R's X", "decimals", "decimal commas in spots", "spots CR", "spots UTF-16", "empty last column",
    "NA in selected", "open quote",
)  # fmt: skip
REFUSED = (
    "comment of Excel", "short row", "long row", "NA count", "negative", "half",
    "spot twice", "cut gzip", "no spots", "NUL",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")


def tables() -> Iterator[Case]:
    """Tables of legacy ST: separator x line ends x encoding x packed x turned; names and spot files of programs."""
    for sep, ends, encoding, gz, turned in product(
        "\t,;", ("\n", "\r\n", "\r"), ENCODINGS, (False, True), (False, True)
    ):
        how = {"sep": sep, "ends": ends, "encoding": encoding, "gz": gz, "turned": turned}
        label = {"\n": "LF", "\r\n": "CRLF", "\r": "CR", "\t": "tab"}
        name = f"table {label.get(sep, sep)} {label[ends]} {encoding}{' gz' * gz}{' turned' * turned}"
        yield Case(name, _table(**how))
    for style in READ:
        yield Case(f"table, {style}", _table(style=style))
    for style in REFUSED:
        yield Case(f"table, {style}", _table(style=style), "refused")


def _table(
    sep: str = "\t", ends: str = "\n", encoding: str = "utf-8", gz: bool = False, turned: bool = False, style: str = ""
) -> Callable[[Path], dict[str, object]]:
    def write(folder: Path) -> dict[str, object]:
        values, spots, genes = counts().astype(object), list(LEGACY), list(GENES)
        if style == "floats":
            values = counts().astype(float).astype(object)
        elif style == "R's X":
            spots = [f"X{name}" for name in spots]
        elif style == "decimals":
            spots = [f"{float(name.split('x')[0]):.3f}x{float(name.split('x')[1]):.3f}" for name in spots]
        elif style == "spot twice":
            spots[1] = spots[0]
        fault = {"NA count": "NA", "negative": -3, "half": 0.5, "NUL": "1\x00"}.get(style)
        if fault is not None:
            values[4, 3] = fault
        rows = [["", *genes], *([name, *row] for name, row in zip(spots, values.tolist(), strict=True))]
        if turned:
            rows = [list(column) for column in zip(*rows, strict=True)]
        quote = '"' if style == "quoted" else ""
        lines = [sep.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
        if style == "open quote":
            lines[5] = '"' + lines[5]
        elif style == "short row":
            lines[5] = lines[5].rsplit(sep, 2)[0]
        elif style == "long row":
            lines[5] += f"{sep}9"
        elif style == "empty last column":
            lines = [line + sep for line in lines]
        elif style == "comment of Excel":
            lines.insert(0, "sep=,")
        data = (ends.join(lines) + ends).encode(encoding)
        path = folder / ("a_counts.tsv" + ".gz" * (gz or style == "cut gzip"))
        packed = gzip.compress(data) if path.suffix == ".gz" else data
        path.write_bytes(packed[:-40] if style == "cut gzip" else packed)
        return {"source": path, "spots": _spots(folder, style), "image": picture(folder / "a.png"), "mpp": 2.0}

    return write


def _spots(folder: Path, style: str) -> Path:
    """The spot file that belongs to a table."""
    number: Callable[[float], str] = (
        (lambda v: f"{v:.1f}".replace(".", ",")) if style.startswith("decimal commas") else (lambda v: f"{v:.1f}")
    )
    sep = ";" if style.startswith("decimal commas") else "\t"
    rows = [
        sep.join([*name.split("x"), number(x), number(y), "NA" if style == "NA in selected" and i == 7 else "1"])
        for i, (name, (x, y)) in enumerate(zip(LEGACY, centres(), strict=True))
    ]
    ends = "\r" if style == "spots CR" else "\n"
    lines = [sep.join(["x", "y", "pixel_x", "pixel_y", "selected"]), *([] if style == "no spots" else rows)]
    path = folder / "a_spots.tsv"
    path.write_bytes((ends.join(lines) + ends).encode("utf-16" if style == "spots UTF-16" else "utf-8"))
    return path


def cases() -> list[Case]:
    """All sections."""
    return [*h5ads(), *visiums(), *tables()]
