"""What part of its slide each plot shows: a micrometre as long across as down, and two slides that move together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SETTLE = """
    const settle = () => {
        state.waiting = false;
        const now = [];
        for (const [i, {properties, x_range: x, y_range: y}] of plots.entries()) {
            const sides = [properties.inner_width, properties.inner_height];
            const [width, height] = sides.map((side) => side.is_unset ? 0 : side.get_value());
            if (!(width > 0 && height > 0)) return;
            const across = (x.end - x.start) / width, down = (y.end - y.start) / height, old = state.views[i];
            const view = {scale: across, x: (x.start + x.end) / 2, y: (y.start + y.end) / 2, width, height};
            if (!(across > 0 && Math.abs(down / across - 1) < 0.005) || width !== old.width || height !== old.height) {
                const first = {...view, scale: Math.max(across, down)};
                const usable = first.scale > 0 && Object.values(first).every(Number.isFinite);
                const home = {...old, scale: state.side / Math.min(width, height)};
                Object.assign(view, old.scale ? old : usable ? first : home, {width, height});
            }
            now.push(view);
        }
        const [one, two] = now, moved = now.map((view, i) => ["x", "y", "scale"].some((key) =>
            Math.abs(view[key] - state.views[i][key]) > 1e-3 * view.scale));
        if (two && link.active) {
            if (!state.linked || (moved[0] && moved[1]))
                Object.assign(state, {x: two.x - one.x, y: two.y - one.y});
            const [from, to, sign] = moved[1] && !moved[0] && state.linked ? [two, one, -1] : [one, two, 1];
            Object.assign(to, {scale: from.scale, x: from.x + sign * state.x, y: from.y + sign * state.y});
        }
        state.linked = link.active;
        state.views = now;
        now.forEach((view, i) => {
            const set = (range, middle, pixels) => {
                const start = middle - view.scale * pixels / 2, end = middle + view.scale * pixels / 2;
                const away = Math.abs(range.start - start) + Math.abs(range.end - end);
                if (!(away < 1e-3 * view.scale)) range.setv({start, end});
            };
            set(plots[i].x_range, view.x, view.width);
            set(plots[i].y_range, view.y, view.height);
        });
    };
    if (!state.waiting) { state.waiting = true; requestAnimationFrame(settle); }"""


def keep_views(plots: Sequence[Any], side_um: float, link: Any) -> None:
    """Keep plots undistorted, each at its scale when its size changes, and two of them together while they are linked.

    Linked, both have one scale and the distance that they had when they were linked, or when both were moved at once.
    Bokeh's tiles see to a first view only: they stretch ranges that several plots share, and plots without a width.

    Parameters
    ----------
    plots : sequence of bokeh.models.Plot
        One of each slide; other plots of a slide share its ranges and its size.
    side_um : float
        Side of the square that is shown first.
    link : bokeh.models.Toggle
        Active while they are linked.
    """
    from bokeh.models import CustomJS

    middles = [[(each.start + each.end) / 2 for each in (plot.x_range, plot.y_range)] for plot in plots]
    views = [{"x": x, "y": y, "scale": 0, "width": 0, "height": 0} for x, y in middles]
    state = {"views": views, "side": side_um, "linked": False, "waiting": False, "x": 0, "y": 0}
    names: Any = {"plots": list(plots), "link": link, "state": state}
    callback = CustomJS(args=names, code=_SETTLE)
    link.js_on_change("active", callback)
    for plot in plots:
        for side in ("inner_width", "inner_height"):
            plot.js_on_change(side, callback)
        for each in (plot.x_range, plot.y_range):
            each.js_on_change("start", callback)
            each.js_on_change("end", callback)
