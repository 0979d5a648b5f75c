"""The command that shows predictions in a browser: view."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cmrcnet.errors import BadOption
from cmrcnet.storage.atomic import atomic_file, final_path, refuse_existing

if TYPE_CHECKING:
    from cmrcnet.slides.section import Cohort


def view_command(
    prediction: Path,
    *,
    with_: Annotated[Path | None, Parameter(name="--with")] = None,
    slide: Path | None = None,
    bank: Path | None = None,
    cohort: Path | None = None,
    truth: str | None = None,
    gene: str | None = None,
    save: Path | None = None,
    port: int = 0,
    no_browser: bool = False,
    overwrite: bool = False,
) -> None:
    """Look at a prediction in a browser: the slide, any gene over it, and the measured tissue behind a location.

    The page is served to this machine only, at an address with a secret token, until Ctrl-C; it loads nothing from the
    internet. Needs: pip install 'cmrcnet[view]'.

    Parameters
    ----------
    prediction : Path
        A prediction table (.h5ad) that `cmrcnet predict` wrote.
    with_ : Path, optional
        A second prediction table to show beside it, of the same slide or of another.
    slide : Path, optional
        The slide that was predicted, for deep zoom; found in the cohort, or else the small picture in the table is
        shown.
    bank : Path, optional
        The bank of the prediction, which names the cohort that it was built from.
    cohort : Path, optional
        The cohort.csv of the bank, where it is not where the bank was built: patches and measured values of the nearest
        spots, and TRUTH.
    truth : str, optional
        Section of the cohort that was measured on the slide, to show beside the prediction.
    gene : str, optional
        Gene to show first; the most reliable when left out.
    save : Path, optional
        Write the first view to this .html, to mail, and serve nothing. It has at most 20 MB and says what it leaves
        out.
    port : int
        Port of 127.0.0.1 to serve on; 0 takes a free one.
    no_browser : bool
        Print the address and open no browser.
    overwrite : bool
        Replace SAVE.
    """
    from cmrcnet.export.stored_prediction import StoredPrediction
    from cmrcnet.slides.slide import open_slide
    from cmrcnet.viewer.overlay import predicted_slide
    from cmrcnet.viewer.server import Viewer, require_bokeh

    require_bokeh()
    if save is not None:
        if save.suffix != ".html":
            raise BadOption("save", str(save), "a file name that ends in .html")
        refuse_existing(save, overwrite)
    with ExitStack() as stack:
        table = stack.enter_context(StoredPrediction(prediction))
        second = None if with_ is None else stack.enter_context(StoredPrediction(with_))
        sections = _cohort(bank, cohort)
        picture = None if slide is None else open_slide(slide, mpp=float(table.facts["mpp"]))
        first = predicted_slide(table, slide=picture, cohort=sections, truth=truth)
        other = None if second is None else predicted_slide(second, cohort=sections)
        if save is not None:
            from cmrcnet.viewer.document import Page
            from cmrcnet.viewer.saved_page import saved_page

            page = saved_page(Page(first, other=other, gene=gene, tile_url="tiles"))
            with atomic_file(save) as tmp:
                tmp.write_text(page, encoding="utf-8")
            print(f"Page written to {final_path(save)} ({save.stat().st_size / 2**20:.1f} MB).")
            return
        viewer = stack.enter_context(Viewer(first, other=other, cohort=sections, gene=gene, port=port))
        print(f"{viewer.url}\nServed to this machine only. Ctrl-C ends it.", flush=True)
        if not no_browser:
            viewer.open()
        try:
            viewer.wait()
        except KeyboardInterrupt:
            print("Ended.")


def _cohort(bank: Path | None, cohort: Path | None) -> Cohort | None:
    """The cohort that was named, or that a bank was built from."""
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.slides.section import Cohort

    if cohort is not None:
        return read_cohort(cohort)
    if bank is None:
        return None
    from cmrcnet.retrieval.store import Manifest

    sources = list(dict.fromkeys(str(record["source"]) for record in Manifest.read(bank).sections))
    if gone := [source for source in sources if not Path(source).is_file()]:
        raise BadOption(
            "bank", str(bank), f"a bank whose cohort file is still there ({gone[0]}), or --cohort COHORT.csv"
        )
    return Cohort(str(bank), tuple(entry for source in sources for entry in read_cohort(Path(source)).entries))
