"""Plots of a result as inline SVG that takes the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from armillary.contract import Curve, Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_INK = "#010203"  # replaced by `currentColor`, so that text and axes follow the page
COLOURS = (  # each with a contrast of 3 and more against white and against the dark page
    "#3a7cc4",
    "#d1692d",
    "#3a9a5b",
    "#a35fc0",
    "#c2474f",
    "#8a6d3b",
    "#d15fa3",
    "#7a7f87",
    "#7c8a1f",
    "#1f8f9e",
)
_SIZE = 8.0  # points, of the text
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: measuring text never searches the machine
    "font.size": _SIZE,
    "text.parse_math": False,  # `$5 to $6` is text
    "axes.formatter.use_mathtext": False,
}
_HIDDEN = "\u200b"  # before a name: matplotlib leaves those that begin with `_` out of legends


def curve_svg(curve: Curve, *, methods: Collection[str] = ()) -> str:
    """A curve as an SVG element.

    Args:
        curve: The plot's data.
        methods: The names of the lines to be marked as the method's: drawn thicker, on top of the others.
    """
    with _drawing(curve.title):
        figure, axes = _canvas(5.6, 3.6)
        for index, (name, series) in enumerate(curve.series.items()):
            marked = name in methods
            axes.plot(
                series.x,
                series.y,
                "-" if index < len(COLOURS) else "--",
                label=_HIDDEN + name,
                marker="o" if len(series.x) <= 24 else None,
                markersize=4.2 if marked else 3,
                linewidth=2.8 if marked else 1.3,
                zorder=3 if marked else 2,
                color=COLOURS[index % len(COLOURS)],
            )
        axes.set(xlabel=curve.x_label, ylabel=curve.y_label, xscale=curve.x_scale, yscale=curve.y_scale)
        _plain_numbers(axes)
        axes.grid(True, color=_INK, alpha=0.12, linewidth=0.6)
        if len(curve.series) > 1:
            axes.legend(frameon=False, fontsize=_SIZE, labelcolor=_INK)
        _fit(figure, axes, right=0.02)
        return _svg(figure, curve.title)


def image_svg(image: Image) -> str:
    """A two-dimensional field as an SVG element with a colour bar.

    Args:
        image: The field.
    """
    with _drawing(image.title):
        figure, axes = _canvas(4.2, 3.4)
        drawn = axes.imshow(image.values, cmap="viridis", aspect="auto", interpolation="nearest")
        _fit(figure, axes, right=0.24)
        frame = axes.get_position()
        bar = figure.colorbar(drawn, cax=figure.add_axes((frame.x1 + 0.04, frame.y0, 0.05, frame.height)))
        bar.ax.tick_params(colors=_INK, labelsize=_SIZE)
        bar.outline.set_edgecolor(_INK)
        return _svg(figure, f"{image.title}. {image.caption}" if image.caption else image.title)


@contextmanager
def _drawing(title: str) -> Iterator[None]:
    """While something is drawn: our style, and no warnings (a letter that the font lacks) on the user's terminal."""
    import matplotlib

    # The salt keeps what matplotlib calls its parts the same from run to run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings(action="ignore"):
        yield


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=72)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(which="both", colors=_INK, labelsize=_SIZE)
    axes.xaxis.label.set(color=_INK, fontsize=_SIZE + 1)
    axes.yaxis.label.set(color=_INK, fontsize=_SIZE + 1)
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


def _fit(figure: Figure, axes: Axes, right: float) -> None:
    """Leave the room that the labels need. matplotlib's own layouts draw all of it twice to find out."""
    width, height = figure.get_size_inches() * 72
    widest = max((len(label) for label in _tick_labels(axes.yaxis)), default=1)
    title = 1.6 * (_SIZE + 1)
    left = 8 + 0.62 * _SIZE * widest + (title if axes.get_ylabel() else 0)
    bottom = 8 + 1.2 * _SIZE + (title if axes.get_xlabel() else 0)
    figure.subplots_adjust(left=left / width, right=1 - right, bottom=bottom / height, top=1 - 10 / height)


def _tick_labels(axis: Axis) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    labels = []
    for places, formatter in (
        (axis.get_majorticklocs(), axis.get_major_formatter()),
        (axis.get_minorticklocs(), axis.get_minor_formatter()),
    ):
        shown = [place for place in places if low <= place <= high]
        labels += formatter.format_ticks(shown)
    return labels


def _svg(figure: Figure, title: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().replace(_HIDDEN, "").replace(_INK, "currentColor")
    text = _short(text[text.index("<svg") :])
    box = re.search(r'viewBox="[^"]*"', text)
    label = f'role="img" aria-label="{escape(title)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box.group() if box else ""} {label}>'
    return _own_identifiers(head + text[text.index(">") + 1 :], title)


def _short(text: str) -> str:
    """Without comments and metadata, coordinates to a hundredth of a point."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)
    return re.sub(r"\n\s*", "\n", text)


def _own_identifiers(text: str, title: str) -> str:
    """Several SVGs share one page: make their ids unique, and the font the page's; only inside tags, not in labels."""
    prefix = f"p{zlib.crc32((title + text).encode()):08x}-"

    def own(tag: re.Match[str]) -> str:
        inside = tag.group().replace("xlink:href", "href").replace("'DejaVu Sans'", "system-ui, sans-serif")
        inside = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', inside)
        inside = re.sub(r'"#([^"]+)"', rf'"#{prefix}\1"', inside)
        return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", inside)

    head, rest = text.split(">", 1)  # the label in it is text as well
    return f"{head}>" + re.sub(r"<[a-zA-Z][^<>]*>", own, rest)
