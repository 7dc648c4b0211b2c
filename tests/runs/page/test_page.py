import base64
import io
import json
import math
from html.parser import HTMLParser

import pytest

pytest.importorskip("detectron2")

from PIL import Image

from gw_detectron.runs.page import load_ground_truth
from gw_detectron.runs.page.page import Page
from gw_detectron.runs.page.per_image import ImageAPs
from gw_detectron.runs.page.row import Picture, Row, RunDetections

from .synthetic import CAT, DOG, NOTHING, ONE_CAT, TWO_DOGS, detection

LINKS = {"src", "href", "srcset", "data", "action", "poster"}


class Parsed(HTMLParser):
    """
    Attributes:
        tags: (name, attributes) of each.
        texts: by the innermost tag they are in.
    """

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(html)
        assert not self.open, "not every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def run(label, ap=40.0, shown=None):
    return RunDetections(label, "a/path", {"bbox": ImageAPs(ap, {})}, shown or {}, False)


def row(name, *box_aps):
    picture = Picture('title "x"', "caption", 'what "is" <seen>', Image.new("RGB", (40, 30), "red"))
    return Row(name, list(box_aps), [picture] * (1 + len(box_aps)))


def write(truth, runs, rows, image_ids=()):
    file = io.StringIO()
    page = Page(file, truth, runs, image_ids, 0.5)
    for one in rows:
        page.add(one)
    page.close()
    return Parsed(file.getvalue())


def test_the_page_needs_nothing_but_itself(pets):
    page = write(load_ground_truth(pets), [run("GN"), run("GW")], [row("a", 1, 2), row("b", 3, 4)])
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in LINKS]
    assert len(links) == 6 and not page.all("link")
    for link in links:
        head, _, data = link.partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert image.size == (40, 30) and image.getpixel((20, 15))[0] > 240
    assert "url(" not in "".join(page.texts["style"]) and "@import" not in page.texts["style"]


def test_pictures_are_described_and_have_their_sizes(pets):
    page = write(load_ground_truth(pets), [run("GN")], [row("a", 1)])
    for image in page.all("img"):
        assert image["alt"] == 'what "is" <seen>'
        assert (image["width"], image["height"]) == ("40", "30")
    assert page.all("html") == [{"lang": "en"}] and "width=device-width" in str(page.all("meta"))


def test_names_with_signs_of_html_stay_text(pets):
    runs = [run("<b>&GN</b>"), run("GW")]
    page = write(load_ground_truth(pets), runs, [row("<i>.png", 1, 2)])
    assert page.texts["h2"] == ["1. <i>.png: box AP differs by 1.0"]
    assert page.texts["th"][3] == "<b>&GN</b>"
    assert "lowest AP of <b>&GN</b> first" in page.texts["option"]


def test_the_aps_of_the_dataset_are_in_a_table(pets):
    masks = RunDetections(
        "GW", "b", {"bbox": ImageAPs(41.234, {}), "segm": ImageAPs(35, {})}, {}, True
    )
    page = write(load_ground_truth(pets), [run("GN"), masks], [])
    assert page.texts["th"] == ["run", "box AP", "mask AP", "from", "GN", "GW"]
    assert page.texts["td"] == ["40.00", "a/path", "41.23", "35.00", "b"]


def test_the_legend_has_the_classes_that_are_drawn(pets):
    truth = load_ground_truth(pets)
    found = run("GN", shown={NOTHING: [detection(NOTHING, CAT, [0, 0, 5, 5])]})
    for image_ids, expected in (
        ([TWO_DOGS], ["dog"]),
        ([ONE_CAT], ["cat"]),
        ([NOTHING, TWO_DOGS], ["dog", "cat"]),
    ):
        assert write(truth, [found], [], image_ids).texts["li"] == expected
    assert truth.category_ids == (DOG, CAT)


def orders(page):
    (text,) = (t for t in page.texts["script"] if t.startswith("["))
    return dict(zip(page.texts["option"], json.loads(text), strict=True))


def test_rows_can_be_put_in_other_orders(pets):
    rows = [row("c", 10, 90), row("a", 60, 50), row("b", math.nan, math.nan)]
    assert orders(write(load_ground_truth(pets), [run("GN"), run("GW")], rows)) == {
        "largest difference first": [0, 1, 2],
        "lowest AP of GN first": [0, 1, 2],
        "lowest AP of GW first": [1, 0, 2],
        "by file name": [1, 2, 0],
    }


def test_one_run_is_not_said_to_differ(pets):
    page = write(load_ground_truth(pets), [run("GN")], [row("b", 10), row("a", 20)])
    assert orders(page) == {"lowest AP of GN first": [0, 1], "by file name": [1, 0]}
    assert page.texts["h2"] == ["1. b", "2. a"]
    assert "lowest box AP come first" in page.texts["p"][0]
