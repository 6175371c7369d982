"""Plots of a result as inline SVG that takes the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
import zlib
from typing import TYPE_CHECKING

from armillary.contract import Curve, Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#010203"  # replaced by `currentColor`, so that text and axes follow the page
_COLOURS = (
    "#2f6fb3",
    "#d1692d",
    "#3a9a5b",
    "#a35fc0",
    "#c2474f",
    "#8a6d3b",
    "#d15fa3",
    "#7a7f87",
    "#9aa62b",
    "#2aa5b5",
)


def curve_svg(curve: Curve) -> str:
    """A curve as an SVG element.

    Args:
        curve: The plot's data.
    """
    figure, axes = _canvas(5.6, 3.6)
    for index, (name, series) in enumerate(curve.series.items()):
        marker = "o" if len(series.x) <= 24 else None
        colour = _COLOURS[index % len(_COLOURS)]
        style = "-" if index < len(_COLOURS) else "--"
        axes.plot(
            series.x, series.y, style, label=name, marker=marker, markersize=3.5, linewidth=1.6, color=colour
        )
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label, xscale=curve.x_scale, yscale=curve.y_scale)
    _plain_numbers(axes)
    axes.grid(True, color=_INK, alpha=0.12, linewidth=0.6)
    if len(curve.series) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return _svg(figure, curve.title)


def image_svg(image: Image) -> str:
    """A two-dimensional field as an SVG element with a colour bar.

    Args:
        image: The field.
    """
    figure, axes = _canvas(4.2, 3.4)
    drawn = axes.imshow(image.values, cmap="viridis", aspect="auto", interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.outline.set_edgecolor(_INK)
    return _svg(figure, image.title)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(which="both", colors=_INK, labelsize=8)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
    for spine in axes.spines.values():
        spine.set(edgecolor=_INK, alpha=0.5)
    return figure, axes


def _plain_numbers(axes: Axes) -> None:
    """Write 20, not 2 x 10^1, on logarithmic axes; minor ticks only get labels where decades are few."""
    from matplotlib.ticker import LogFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _svg(figure: Figure, title: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    return _own_identifiers(text, title)


def _own_identifiers(text: str, title: str) -> str:
    """Several SVGs share one page: make their ids unique."""
    prefix = f"p{zlib.crc32((title + text).encode()):08x}-"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', text)
    text = re.sub(r'"#([^"]+)"', rf'"#{prefix}\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", text)
