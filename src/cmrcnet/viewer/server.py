"""Serve the viewer to this machine only: own address, a token in it, and no other host or origin.

A request is answered only if its path starts with the token, its Host is this machine, and its Origin, where it has
one, is the page itself. So neither another machine, nor a page of another site in the same browser, nor a name that is
made to point to 127.0.0.1 (DNS rebinding) reaches the slides. All of the page's scripts come from the installed Bokeh.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from cmrcnet.errors import BadOption, MissingExtra
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.genes.table import check_prediction_table
from cmrcnet.slides.section import Cohort
from cmrcnet.viewer.overlay import PredictedSlide, predicted_slide

if TYPE_CHECKING:
    from anndata import AnnData
    from tornado.httputil import HTTPServerRequest

    from cmrcnet.slides.slide import Slide
    from cmrcnet.viewer.document import Page

HOST = "127.0.0.1"
TOKEN_BYTES = 24


def require_bokeh() -> None:
    """Raise `MissingExtra` where Bokeh is not installed."""
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        raise MissingExtra("bokeh", "The viewer", "'cmrcnet[view]'") from error


class Viewer:
    """A running viewer; `close` ends it. In a notebook it shows itself.

    Parameters
    ----------
    slide : PredictedSlide
    other : PredictedSlide, optional
        A second prediction beside it.
    cohort : Cohort, optional
        That of the bank, for the measured tissue behind a location.
    gene : str, optional
        Shown first; the most reliable when left out.
    port : int
        0 takes a free one.

    Attributes
    ----------
    url : str
        Its address, with the token.
    held : list
        Files and folders that are closed with it.

    Raises
    ------
    MissingExtra
    UnknownName
        There is no such gene.
    BadOption
        The port is taken.
    """

    def __init__(
        self,
        slide: PredictedSlide,
        *,
        other: PredictedSlide | None = None,
        cohort: Cohort | None = None,
        gene: str | None = None,
        port: int = 0,
    ) -> None:
        require_bokeh()
        if not 0 <= port < 65536:
            raise BadOption("port", port, "0 (any free one) to 65535")
        self._slides = [slide] if other is None else [slide, other]
        self._read_once = cohort
        if cohort is not None:
            once = [replace(entry, load=cache(entry.load)) for entry in cohort.entries]
            self._read_once = Cohort(cohort.name, tuple(once))
        self._options = {"other": other, "cohort": self._read_once, "gene": gene}
        self.token, self.port, self.url = secrets.token_urlsafe(TOKEN_BYTES), port, ""
        self._slow = ThreadPoolExecutor(1, "cmrcnet-view")  # decoders are used by one thread at a time
        self._first: Page | None = self._page()  # so that what is wrong is known, and the first view is ready
        self.held: list[StoredPrediction | tempfile.TemporaryDirectory] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = Event()
        self._error: OSError | None = None
        self._thread = Thread(target=self._run, name="cmrcnet-view-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise BadOption("port", port, f"a free port, or 0 ({self._error.strerror})") from self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from bokeh.resources import Resources
        from bokeh.server.server import BaseServer
        from bokeh.server.tornado import BokehTornado
        from tornado.httpserver import HTTPServer
        from tornado.ioloop import IOLoop
        from tornado.netutil import bind_sockets
        from tornado.routing import Rule, RuleRouter

        sockets = bind_sockets(self.port, HOST)
        self.port = sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/{self.token}/"
        origins = [f"{name}:{self.port}" for name in (HOST, "localhost")]

        class Served(BokehTornado):
            """Without the scripts of tables, formulas and WebGL: over half of all, and of no use to this page."""

            def resources(self, absolute_url: str | bool | None = None) -> Resources:
                return super().resources(absolute_url).clone(components=["bokeh", "bokeh-widgets"])

        tornado = Served(
            {"/": self._make_page},
            prefix=f"/{self.token}",
            extra_websocket_origins=origins,
            extra_patterns=[
                (
                    r"/tiles/(\d)/(\d{1,2})/(\d{1,7})/(\d{1,7})\.jpg",
                    _tile_handler(),
                    {"slides": self._slides, "slow": self._slow},
                )
            ],
            redirect_root=False,
            use_index=False,
        )
        http = HTTPServer(RuleRouter([Rule(_from_here(origins), tornado)]))
        http.add_sockets(sockets)
        server = BaseServer(IOLoop.current(), tornado, http)
        server.start()
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stopped.wait()
        server.stop()
        http.stop()
        await http.close_all_connections()

    def _page(self) -> Page:
        from cmrcnet.viewer.document import Page

        async def later(work: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(self._slow, work)

        return Page(self._slides[0], **self._options, tile_url=f"/{self.token}/tiles", later=later)

    def _make_page(self, doc: Any) -> None:
        wake = Thread(target=import_module, args=("scanpy",), daemon=True)  # for which the first region would wait
        asyncio.get_running_loop().call_later(3, wake.start)
        page, self._first = self._first or self._page(), None
        page.add_to(doc)

    def open(self) -> bool:
        """Open it in a browser of this machine; False where there is none."""
        return webbrowser.open(self.url)

    def wait(self) -> None:
        """Wait until it is closed."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # a wait without end could not be interrupted

    def close(self) -> None:
        """End it."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
        self._slow.shutdown(cancel_futures=True)
        for each in self.held:
            each.close() if isinstance(each, StoredPrediction) else each.cleanup()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return f'<iframe src="{self.url}" width="100%" height="760" style="border: 1px solid #dde3ea"></iframe>'


def view(
    table: AnnData,
    *,
    slide: Slide | None = None,
    other: AnnData | None = None,
    cohort: Cohort | None = None,
    truth: str | None = None,
    gene: str | None = None,
    port: int = 0,
) -> Viewer:
    """Show a prediction table in a browser, or in a notebook, where the result shows itself.

    Parameters
    ----------
    table : anndata.AnnData
        A prediction table.
    slide : Slide, optional
        The predicted slide, for deep zoom; that of `truth`, or the small picture in the table, when left out.
    other : anndata.AnnData, optional
        A second prediction table to show beside it, of the same slide or of another.
    cohort : Cohort, optional
        That of the bank, for the measured tissue behind a location.
    truth : str, optional
        Section of `cohort` that was measured on the slide, to show beside the prediction.
    gene : str, optional
        Shown first; the most reliable when left out.
    port : int
        Port to serve on, for this machine only; 0 takes a free one.

    Returns
    -------
    Viewer
        It runs until `Viewer.close`; `Viewer.url` is its address, which holds a secret token.

    Raises
    ------
    MissingExtra
        Bokeh is not installed.
    Damaged, BadOption, ScaleError, UnknownName
        It is no prediction table; slide or truth are of another slide, or of another scale; there is no such gene or
        section.

    Examples
    --------
    >>> import numpy as np
    >>> from cmrcnet import prediction_table, synthetic_cohort
    >>> section = synthetic_cohort(patients=1, spots=4, genes=24).read("P1S1")
    >>> table = prediction_table(
    ...     np.ones((4, 1)), np.ones((4, 1)), genes=["ERBB2"], spots=section.spots, slide=section.slide,
    ...     neighbours=None, provenance={"k": 50},
    ... )
    >>> with view(table, slide=section.slide) as viewer:
    ...     viewer.url.startswith("http://127.0.0.1:")
    True
    """
    require_bokeh()
    folder = tempfile.TemporaryDirectory(prefix="cmrcnet-view-", ignore_cleanup_errors=True)
    stored = []
    for number, each in enumerate((table, other)):
        if each is None:
            continue
        check_prediction_table(each)
        path = Path(folder.name) / f"{number}.h5ad"
        each.write_h5ad(path)
        stored.append(StoredPrediction(path))
    first = predicted_slide(stored[0], slide=slide, cohort=cohort, truth=truth)
    second = predicted_slide(stored[1], cohort=cohort) if other is not None else None
    viewer = Viewer(first, other=second, cohort=cohort, gene=gene, port=port)
    viewer.held = [*stored, folder]
    return viewer


def _from_here(origins: list[str]) -> Any:
    """A matcher of requests to this machine from its own page, or from outside of any page."""
    from tornado.routing import Matcher

    class FromHere(Matcher):
        def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
            origin = request.headers.get("Origin")
            known = request.host in origins and (origin is None or origin.removeprefix("http://") in origins)
            return {} if known else None

    return FromHere()


def _tile_handler() -> Any:
    from tornado.web import HTTPError, RequestHandler

    class TileHandler(RequestHandler):
        def initialize(self, slides: list[PredictedSlide], slow: ThreadPoolExecutor) -> None:
            self.slides, self.slow = slides, slow

        async def get(self, slide: str, zoom: str, column: str, row: str) -> None:
            if int(slide) >= len(self.slides) or int(zoom) > self.slides[int(slide)].tiles.deepest + 1:
                raise HTTPError(404)
            tiles, tile = self.slides[int(slide)].tiles, (int(zoom), int(column), int(row))
            if int(zoom) > tiles.deepest:
                self.set_status(204)  # Bokeh asks ahead for the next zoom, also below the deepest
                return
            content = await asyncio.get_running_loop().run_in_executor(self.slow, tiles.jpeg, *tile)
            self.set_header("Content-Type", "image/jpeg")
            self.set_header("Cache-Control", "private, max-age=3600")
            self.write(content)

    return TileHandler
