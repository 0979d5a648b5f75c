"""Who is answered: this machine, with the token, from the page itself; and nothing comes from the internet."""

from __future__ import annotations

import asyncio
import http.client
import io
import re

import numpy as np
import pytest
from PIL import Image
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

import cmrcnet
from cmrcnet.errors import BadOption
from cmrcnet.viewer.server import Viewer


@pytest.fixture
def viewer(viewed, small_bank_cohort):
    with Viewer(viewed, cohort=small_bank_cohort) as running:
        yield running


def ask(viewer: Viewer, path: str, host: str | None = None, origin: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
    headers = {"Host": host or f"127.0.0.1:{viewer.port}"} | ({} if origin is None else {"Origin": origin})
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_the_right_token_host_and_origin_are_answered(viewer):
    page, tile = f"/{viewer.token}/", f"/{viewer.token}/tiles/0/0/0/0.jpg"
    for path in (page, tile):
        assert ask(viewer, path)[0] == 200
        assert ask(viewer, path, origin=f"http://127.0.0.1:{viewer.port}")[0] == 200
        assert ask(viewer, path, host=f"rebound.example:{viewer.port}")[0] == 404
        assert ask(viewer, path, host="127.0.0.1:1")[0] == 404
        for origin in ("http://evil.example", f"https://127.0.0.1:{viewer.port}", "null", "http://127.0.0.1:1"):
            assert ask(viewer, path, origin=origin)[0] == 404
        assert ask(viewer, path.replace(viewer.token, "a" * len(viewer.token)))[0] == 404
    for path in ("/", "/ws", "/static/js/bokeh.min.js", "/tiles/0/0/0/0.jpg", "/metadata"):
        assert ask(viewer, path)[0] == 404
    assert len(viewer.token) >= 32


def test_it_listens_on_this_machine_only(viewer):
    import socket

    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"} | {"127.0.0.2"}:  # the latter is answered where all addresses are
        with pytest.raises(OSError), socket.create_connection((address, viewer.port), timeout=2):
            pass


def test_the_channel_of_the_page_refuses_another_origin(viewer):
    async def status(origin: str, token: str) -> int:
        url = f"ws://127.0.0.1:{viewer.port}/{token}/ws"
        try:
            await websocket_connect(HTTPRequest(url, headers={"Origin": origin}), subprotocols=["bokeh", "x"])
        except HTTPClientError as error:
            return error.code
        return 101

    assert asyncio.run(status("http://evil.example", viewer.token)) in (403, 404)
    assert asyncio.run(status(f"http://127.0.0.1:{viewer.port}", "wrong")) == 404


def test_the_page_names_nothing_outside_of_this_machine(viewer):
    code, page = ask(viewer, f"/{viewer.token}/")
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page.decode())
    assert code == 200 and links and all(link.startswith(f"/{viewer.token}/static/") for link in links)
    assert b"Content-Security-Policy" in page and b"default-src 'self'" in page


def test_a_served_tile_is_the_slides(viewer, viewed):
    _, content = ask(viewer, f"/{viewer.token}/tiles/0/{viewed.tiles.deepest}/0/0.jpg")
    served = np.asarray(Image.open(io.BytesIO(content))).mean(axis=2)
    own, other = (viewed.tiles.slide.read(x, 0, 256, 256).mean(axis=2) for x in (0, 1))
    assert np.corrcoef(served.ravel(), own.ravel())[0, 1] > 0.8  # JPEG of noise
    assert abs(np.corrcoef(served.ravel(), other.ravel())[0, 1]) < 0.2
    assert ask(viewer, f"/{viewer.token}/tiles/0/{viewed.tiles.deepest + 1}/0/0.jpg") == (204, b"")
    for missing in ("1/0/0/0", "0/9/0/0"):
        assert ask(viewer, f"/{viewer.token}/tiles/{missing}.jpg")[0] == 404


def test_a_port_that_is_taken_is_refused(viewer, viewed):
    with pytest.raises(BadOption, match=r"port is \d+; wanted a free port, or 0"):
        Viewer(viewed, port=viewer.port)


def test_a_table_in_memory_is_shown_in_a_notebook(stored_path):
    import anndata

    viewer = cmrcnet.view(anndata.read_h5ad(stored_path))
    try:
        assert f'<iframe src="{viewer.url}"' in viewer._repr_html_()
        assert ask(viewer, f"/{viewer.token}/")[0] == 200
    finally:
        viewer.close()
    with pytest.raises(OSError):
        ask(viewer, f"/{viewer.token}/")
