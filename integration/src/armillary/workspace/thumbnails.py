"""Small pictures for pages that show many: a curve a few centimetres wide, and a ratio on a line.

They are plain markup of two or three kilobytes that takes its colours from the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

from armillary.contract import Curve, Series
from armillary.summary import show_number
from armillary.workspace.evidence import Ratio

_WIDTH, _HEIGHT = 300, 190
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 24, 292, 148
_MOST_POINTS = 60
_MOST_NAMES = 3
_LONGEST = 6  # characters of a number
_COLOURS = 6  # as many as the style sheet has for lines of equal standing
_FIRST_DECADE, _LAST_DECADE = -2, 4  # of the ratios' axis


@dataclass(frozen=True)
class _Axis:
    """Data to pixels, on a linear or a logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Collection[float], start: float, end: float, log: bool) -> _Axis:
        """The axis that just holds these values (the positive ones, if it is logarithmic)."""
        shown = [value for value in values if value > 0 or not log] or [1.0]
        return cls(min(shown), max(shown), start, end, log)

    def __call__(self, value: float) -> float | None:
        """Where a value is; `None` where it cannot be shown."""
        if self.log and value <= 0:
            return None
        low, high, here = (log10(each) if self.log else each for each in (self.low, self.high, value))
        part = (here - low) / (high - low) if high > low else 0.5
        place = self.start + part * (self.end - self.start)
        return place if isfinite(place) else None


def thumbnail(curve: Curve, methods: Collection[str]) -> str:
    """A curve as a small SVG; the method's lines stand out, or all lines are equals if none is the method's.

    Args:
        curve: What to draw.
        methods: The names of the method's lines.
    """
    every = list(curve.series.values())
    x = _Axis.over([value for each in every for value in each.x], _LEFT, _RIGHT, curve.x_scale == "log")
    y = _Axis.over([value for each in every for value in each.y], _BOTTOM, _TOP, curve.y_scale == "log")
    lines = [
        f'<path class="{kind}" d="{path}"/>'
        for name, kind in sorted(_kinds(curve, methods).items(), key=lambda item: item[1] == "ours")
        if (path := _path(curve.series[name], x, y))
    ]
    label = f"{curve.title}. {curve.y_label} by {curve.x_label}: {', '.join(curve.series)}."
    texts = [
        _text(4, 12, "start", curve.y_label),
        _text(_LEFT - 4, _TOP + 8, "end", _short(y.high)),
        _text(_LEFT - 4, _BOTTOM, "end", _short(y.low)),
        _text(_LEFT, _BOTTOM + 16, "start", _short(x.low)),
        _text(_RIGHT, _BOTTOM + 16, "end", _short(x.high)),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 8, "middle", curve.x_label),
    ]
    frame = f'<path class="frame" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
    return (
        f'<svg class="thumbnail" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{frame}{''.join(lines)}{''.join(texts)}</svg>"
    )


def legend(curve: Curve, methods: Collection[str]) -> str:
    """Which line is which, for under the thumbnail: the method's, then some of the others."""
    kinds = _kinds(curve, methods)
    if len(kinds) < 2:
        return ""
    ours = [name for name, kind in kinds.items() if kind == "ours"]
    if not ours:
        return " ".join(_key(kind, name) for name, kind in list(kinds.items())[:_COLOURS]) + _more(
            len(kinds) - _COLOURS
        )
    others = [name for name, kind in kinds.items() if kind != "ours"]
    shown = ", ".join(others[:_MOST_NAMES]) + _more(len(others) - _MOST_NAMES)
    return " ".join(_key("ours", name) for name in ours) + (" " + _key("theirs", shown) if others else "")


def ratio_line(ratio: Ratio) -> str:
    """A ratio from a hundredth to ten thousand on a logarithmic line, with one in the middle of the eye."""
    low, median, high = (_percent(value) for value in (ratio.low, ratio.median, ratio.high))
    kind = "ahead" if ratio.median >= 1 else "behind"
    return (
        f'<span class="ratio {kind}" aria-hidden="true"><i class="one" style="left:{_percent(1):.1f}%"></i>'
        f'<i class="range" style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></i>'
        f'<i class="median" style="left:{median:.1f}%"></i></span>'
    )


def _kinds(curve: Curve, methods: Collection[str]) -> dict[str, str]:
    """Each line's class: `ours` and `theirs`, or one colour each where no line is the method's."""
    if any(name in methods for name in curve.series):
        return {name: "ours" if name in methods else "theirs" for name in curve.series}
    return {name: f"line{index % _COLOURS}" for index, name in enumerate(curve.series)}


def _path(series: Series, x: Callable[[float], float | None], y: Callable[[float], float | None]) -> str:
    places = [
        (across, up) for a, b in _thinned(series) if (across := x(a)) is not None and (up := y(b)) is not None
    ]
    if len(places) == 1:
        places = [(places[0][0] - 2, places[0][1]), (places[0][0] + 2, places[0][1])]  # a dot
    return "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in places) if places else ""


def _thinned(series: Series) -> Iterator[tuple[float, float]]:
    points = list(zip(series.x, series.y, strict=True))
    step = max(1, -(-len(points) // _MOST_POINTS))
    yield from points[::step]
    if points and (len(points) - 1) % step:
        yield points[-1]


def _short(value: float) -> str:
    """A number that fits beside the frame."""
    shown = show_number(value)
    return shown if len(shown) <= _LONGEST else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _key(kind: str, name: str) -> str:
    return f'<span class="key {kind}">{escape(name)}</span>'


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _percent(value: float) -> float:
    decade = log10(value) if value > 0 else floor(_FIRST_DECADE)
    part = (decade - _FIRST_DECADE) / (_LAST_DECADE - _FIRST_DECADE)
    return 100 * min(1.0, max(0.0, part))
