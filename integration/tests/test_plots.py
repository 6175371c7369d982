import re
import warnings
from xml.etree import ElementTree

import pytest

from armillary.contract import Curve, Image, check_result
from armillary.drawings import Drawings, method_lines
from armillary.plots import COLOURS, curve_svg, image_svg


def curve(**changes):
    series = {"walking": {"x": [0, 1, 2], "y": [2.0, 1.0, 0.5]}, "standing": {"x": [0, 2], "y": [2, 2]}}
    facts = {"title": "Distance", "x_label": "step", "y_label": "distance [m]", "series": series}
    return Curve.model_validate({**facts, **changes})


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [element.text for element in root.iter() if element.tag.endswith("text")]


def test_a_plot_takes_the_colour_of_the_page():
    svg = curve_svg(curve())
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert not re.match(r"<svg [^>]*width=", svg)


@pytest.mark.parametrize(
    "svg",
    [
        curve_svg(curve(title='5 < 6 & "so"')),
        image_svg(Image(title='5 < 6 & "so"', values=[[0.0, 1.0]], caption="")),
    ],
    ids=["curve", "image"],
)
def test_a_plot_has_a_name_for_those_who_do_not_see_it(svg):
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", '5 < 6 & "so"')


HOSTILE = [
    "$\\foo{$",
    "price $5 to $6",
    "_hidden",
    "url(#a)",
    'id="x"',
    "</text><script>",
    "a[/b]",
    "名",
    "--> x",
]


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_are_shown_as_they_are(label):
    line = {"x": [1, 2], "y": [1, 2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = texts(curve_svg(curve(x_label=label, series={label: line, "other": line})))
    assert found.count(label) == 2  # at the axis and in the legend


def test_the_lines_of_the_method_are_thicker_and_on_top():
    svg = curve_svg(curve(), methods=["walking"])
    lines = re.findall(r"<path [^>]*clip-path[^>]*stroke: (#\w+)[^>]*stroke-width: ([\d.]+)", svg)
    assert lines == [(COLOURS[1], "1.3"), (COLOURS[0], "2.8")]  # the last is drawn over those before


def test_the_lines_of_the_method_are_found_by_the_rows_they_are_named_after(result):
    line = {"x": [1.0], "y": [1.0]}
    names = ["walking", "standing still", "lake, walking", "walking still", "sleepwalking", "walking-ish"]
    shown = curve(series=dict.fromkeys(names, line))
    assert method_lines(shown, check_result(result)) == ["walking", "lake, walking", "walking still"]


def luminance(colour):
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("paper", ["#ffffff", "#fbfbf9", "#1c2027", "#1e2129"])
def test_colours_stand_out_from_light_and_dark_paper(colour, paper):
    darker, lighter = sorted([luminance(colour), luminance(paper)])
    assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 1.4.11


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_every_label_of_the_axis_is_inside_the_plot(scale):
    line = {"x": [1, 2], "y": [0.00012, 123456.5]}
    svg = curve_svg(curve(y_scale=scale, series={"one": line}))
    places = re.findall(r'text-anchor: end[^>]*x="([-\d.]+)"[^>]*>([^<]+)<', svg)
    assert places
    assert all(float(x) - 0.5 * 8 * len(text) > 0 for x, text in places)


def test_a_plot_is_drawn_once(tmp_path, monkeypatch):
    drawings = Drawings(tmp_path)
    first = drawings.curve(curve())
    monkeypatch.setattr("armillary.plots.curve_svg", None)
    again = Drawings(tmp_path)
    assert again.curve(curve()) == first
    with pytest.raises(TypeError):
        again.curve(curve(), ["walking"])  # another picture


def test_drawings_that_nothing_shows_any_more_go(tmp_path):
    drawings = Drawings(tmp_path)
    drawings.curve(curve())
    later = Drawings(tmp_path)
    later.curve(curve(title="Another"))
    later.forget_the_rest()
    assert len(list(tmp_path.iterdir())) == 1
