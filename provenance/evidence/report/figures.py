"""The two pictures of the report, as inline SVG: the same numbers give the same bytes.

No text of other people is drawn: names of keys and label values stay in the HTML. Text stays text
(no outlines), so that it can be read aloud, selected and searched. Knows numbers only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#1c2430"
ACCENT: Final = "#9b1c31"
SECOND: Final = "#1d5a96"
_PLAIN: Final = "#b9c4d2"
_STYLE: Final[Any] = {
    "svg.hashsalt": "provenance",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "path.simplify": True,
}
_SIZE: Final = (6.6, 2.7)


def draw_placebo(z: Sequence[float], true_z: float | None, name: str, title: str) -> Markup:
    """Histogram of z of the placebo keys, and a line where the true key stands.

    Parameters
    ----------
    z : of each placebo key, at least one, finite
    true_z : z of the true key; None draws no line
    name : prefix of every id inside the picture, unique on the page
    title : alternative text
    """
    values = np.asarray(z, dtype=np.float64)
    low, high = float(np.floor(values.min() - 0.5)), float(np.ceil(values.max() + 0.5))
    bins = np.linspace(low, high, min(80, max(8, round(4 * (high - low)))) + 1)
    with _style():
        figure, axes = _start()
        counts, edges = np.histogram(values, bins=bins)
        axes.stairs(counts, edges, fill=True, facecolor=_PLAIN, edgecolor=INK, linewidth=0.7)
        top = float(np.max(counts))
        axes.set_xlabel("z: how far the choices lean towards a key (chance: 0)")
        axes.set_ylabel("placebo keys")
        axes.set_ylim(0, top * 1.3)
        if true_z is not None:
            axes.axvline(true_z, color=ACCENT, linewidth=2.0)
            left = true_z > (low + high) / 2
            axes.annotate(
                f"true key: z = {true_z:.1f}".replace("-", "−"),
                (true_z, top * 1.18),
                xytext=(-5 if left else 5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                color=ACCENT,
                weight="bold",
            )
        return _finish(figure, name, title)


def draw_trajectory(
    tokens: Sequence[int],
    log10_p: Sequence[float],
    log10_e: Sequence[float],
    log10_alpha: float,
    name: str,
    title: str,
) -> Markup:
    """-log10 of the fixed-n p, and log10 of the e-process, against tokens of outputs.

    Parameters
    ----------
    tokens, log10_p, log10_e : one entry per point, finite
    log10_alpha : level of this key, drawn as a line
    name, title : as in `draw_placebo`
    """
    with _style():
        figure, axes = _start()
        amounts = np.asarray(tokens, dtype=np.float64) / 1000
        axes.axhline(
            -log10_alpha,
            color=INK,
            linewidth=1.0,
            linestyle=(0, (2, 2)),
            label="level for evidence",
        )
        axes.plot(
            amounts, -np.asarray(log10_p), color=ACCENT, marker="o", markersize=4,
            label="all text up to here",
        )  # fmt: skip
        axes.plot(
            amounts, np.asarray(log10_e), color=SECOND, marker="s", markersize=4,
            linestyle=(0, (5, 2)), label="valid at any moment",
        )  # fmt: skip
        axes.set_xlabel("thousand tokens of outputs")
        axes.set_ylabel("strength (6: one in a million)")
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, fontsize=9.5)
        return _finish(figure, name, title)


def _style() -> AbstractContextManager[None]:
    """matplotlib in our style; it takes most of a second to import, so only who draws pays."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _start() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _finish(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an SVG element with alternative text; ids are made unique on the page."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    opening, rest = text.split(">", 1)
    height, width = (re.search(rf'{side}="([\d.]+)pt"', opening) for side in ("height", "width"))
    if height is None or width is None:
        raise ValueError("matplotlib must state the size of a picture")
    return Markup(
        f'<svg viewBox="0 0 {width[1]} {height[1]}" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}'
        f"</title>{rest}"
    )
