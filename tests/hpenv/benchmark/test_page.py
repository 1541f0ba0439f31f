"""The page of a board: complete, closed, small, stable, well formed, and drawn without faults."""

import base64
import json
import re
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest

from hpenv.benchmark.curves import DIGITS, MISSING, encode, mean_curve
from hpenv.benchmark.drawings import _label_places, _overlap
from hpenv.benchmark.markup import VOID
from hpenv.benchmark.methods import OFF
from hpenv.benchmark.page import MOST_BYTES, compact_rows, html_board, markdown_board
from hpenv.benchmark.tables import color_class
from tests.chromium import PROGRAM, Chromium
from tests.hpenv.benchmark.invented_boards import METHODS, board_and_rows

HOSTILE = "<script>alert(1)</script>&\"'](javascript:0)"


class Tree(HTMLParser):
    """Checks that tags are balanced, and collects texts and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    return tree


@pytest.fixture(scope="module")
def large():
    board, rows = board_and_rows(20, 15, 10, diverges=True, points=64)
    return board, rows, html_board(board, rows)


def test_a_page_is_complete_closed_and_small(large):
    board, _, page = large
    assert len(page.encode()) < MOST_BYTES
    tree = parse(page)
    text = " ".join(tree.text)
    for name in (*board.instances, *METHODS, "half-done", board.suite.about, "671a964"):
        assert name in text
    assert "199 of 200 runs are missing" in text
    assert "traces are left out" in text or "left out" not in text


def test_a_page_refers_to_nothing_outside(large):
    page = large[2]
    outside = r"https?:|\ssrc\s*=|@import|url\(|ftp:"
    assert not re.findall(outside, page)
    for _, key, value in parse(page).attributes:
        assert not key.startswith("on") and key != "style"  # the policy would block them
        if key == "href":
            assert value.startswith(("#", "data:"))


def test_the_policy_names_the_style_and_the_script_and_nothing_else(large):
    found = re.search(r'content="(default-src[^"]*)"', large[2]).group(1)
    assert found.startswith("default-src &#x27;none&#x27;") and "unsafe" not in found


def test_the_same_board_gives_the_same_bytes_whatever_the_order_of_its_rows(large):
    board, rows, page = large
    assert html_board(board, rows[::-1]) == page


def test_headers_have_a_scope_and_drawings_a_title(large):
    page = large[2]
    assert len(re.findall(r"<th[ >]", page)) == len(
        re.findall(r'<th [^>]*scope="(?:col|row)"', page)
    )
    for chart in re.findall(r'<svg [^>]*class="(?:chart|interval)".*?</svg>', page, re.S):
        assert "<title>" in chart
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_small_board_has_all_its_rows_and_a_large_one_their_scores(large):
    board, rows = board_and_rows(2, 3, 5, points=9)
    small = html_board(board, rows)
    data = re.search(r"data:application/jsonl;base64,([^\"]+)", small).group(1)
    lines = base64.b64decode(data).decode().splitlines()
    assert sorted(map(json.loads, lines), key=str) == sorted(rows[:-1], key=str)

    board, rows, page = large
    data = re.search(r"data:text/csv;charset=utf-8,([^\"]+)", page).group(1)
    text = urllib.parse.unquote(data)
    assert text == compact_rows(rows[:-1])
    lines = text.splitlines()
    assert lines[0].split(",") == ["instance", "seed", *sorted([*METHODS, "half-done"])]
    assert len(lines) == 201 and "loss" in text


def test_hostile_names_are_text():
    board, rows = board_and_rows(2, names=(OFF, HOSTILE, "</script>"), num_seeds=5)
    page = html_board(board, rows)
    tree = parse(page)
    assert tree.tags.count("script") == 2
    assert HOSTILE in tree.text
    assert "alert(1)</script>" not in page.replace("&lt;", "<", 0)
    assert len(markdown_board(board).splitlines()) == 2 + 3 + 2 + 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_methods": 1},
        {"num_instances": 1},
        {"num_seeds": 1, "num_instances": 1, "num_methods": 1},
        {"diverges": True},
        {"names": ("jel",)},
        {"names": (OFF,)},
    ],
    ids=str,
)
def test_any_board_has_a_page(arguments):
    board, rows = board_and_rows(**arguments)
    page = html_board(board, rows)
    tree = parse(page)
    assert all(standing.method in tree.text for standing in board.standings)
    assert not re.search(
        r"\bnan\b|\binf\b|Infinity|NaN", page.split("<body>")[1].split("<script")[0]
    )


def test_a_page_without_curves_says_so():
    board, rows = board_and_rows(2, 3)
    for row in rows:
        row["curve"] = {"steps": [0, 10], "probe_loss": []}
        row["panel"] = {}
    assert "These rows have no probe loss" in html_board(board, rows)


def test_too_few_seeds_give_no_rank_and_the_reason():
    board, rows = board_and_rows(num_seeds=3)
    assert "There are no ranks: a rank needs at least" in html_board(board, rows)
    assert markdown_board(board).splitlines()[2].startswith("| –")
    board, rows = board_and_rows(num_seeds=5)
    assert "There are no ranks" not in html_board(board, rows)
    assert markdown_board(board).splitlines()[-5].startswith("| 1")


def test_curves_are_decoded_to_within_a_pixel():
    curve = np.array([1.0, np.nan, 2.5, 1.75])
    low, high, text = encode(curve)
    assert (low, high) == (1.0, 2.5)
    levels = [
        64 * DIGITS.index(a) + DIGITS.index(b) for a, b in zip(text[::2], text[1::2], strict=True)
    ]
    assert levels[1] == MISSING
    decoded = low + (high - low) * np.array(levels) / (MISSING - 1)
    np.testing.assert_allclose(decoded[[0, 2, 3]], [1.0, 2.5, 1.75], atol=2e-4)
    assert encode(np.full(3, 0.5)) == 0.5
    assert encode(np.full(3, np.nan)) is None and encode(None) is None


def test_a_diverged_run_leaves_the_mean_where_it_diverged():
    grid = np.array([0.0, 5.0, 10.0])
    curves = [([0, 5, 10], [4.0, 2.0, 2.0]), ([0, 5, 5], [6.0, 4.0, 4.0])]
    np.testing.assert_array_equal(mean_curve(curves, grid), [5.0, 3.0, 2.0])
    assert np.isnan(mean_curve([([0, 5], [None, None])], grid)).all()


def test_labels_do_not_cover_each_other():
    names = [f"method-{k}" for k in range(15)]
    places = [(60.0, y, y + 20, y - 20) for y in range(100, 160, 4)]
    boxes = []
    for name, (x, y, side) in zip(names, _label_places(names, places), strict=True):
        width = 5.9 * len(name)
        start = x if side == "start" else x - width
        boxes.append((start, y - 5.5, start + width, y + 5.5))
    for k, box in enumerate(boxes):
        assert not any(_overlap(box, other) for other in boxes[:k])


def luminance(color):
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_texts_stand_out_from_their_background_in_light_and_dark(large):
    css = re.search(r"<style>(.*?)</style>", large[2], re.S).group(1)
    blocks = re.findall(r":root \{([^}]*--on-light[^}]*)\}", css)
    assert len(blocks) == 2
    for block in blocks:
        colors = {}
        for name, value in re.findall(r"--([\w-]+): (#\w+)", block):
            colors[name] = value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
        pairs = [(text, paper) for text in ("ink", "soft") for paper in ("paper", "panel")]
        pairs += [(text, "paper") for text in ("link", "yes", "no")]
        pairs += [("on-light", name) for name in ("q1", "q2", "q3", "p1", "p2", "p3", "p4")]
        pairs += [("on-dark", name) for name in ("q4", "p5", "p6")] + [("ink", "h0")]
        for text, paper in pairs:
            assert contrast(colors[text], colors[paper]) >= 4.5, (text, paper)
        for line in ("off", *(f"c{k}" for k in range(8))):
            assert contrast(colors[line], colors["paper"]) >= 3.0, line


@pytest.mark.parametrize(
    ("score", "name"),
    [(0.0, "h0"), (0.12, "h0"), (-0.13, "q1"), (-9.0, "q4"), (0.5, "p2"), (1.5, "p6"), (3.0, "p6")],
)
def test_a_score_has_the_color_of_its_quarter(score, name):
    assert color_class(score) == name


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_the_page_without_faults(large, browser, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(large[2])
    browser.open(path, width)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width

    first = "document.querySelector('.standings tbody th').textContent"
    assert browser.evaluate(first) == METHODS[0]
    button = "document.querySelectorAll('.standings thead button')[0].click()"
    browser.evaluate(button)
    assert browser.evaluate(first) == METHODS[-1]
    browser.evaluate(button)
    assert browser.evaluate(first) == METHODS[0]

    line = "document.querySelector('#curve-chart .line').getAttribute('d')"
    choose = "document.querySelector('#choosers select')"
    before = browser.evaluate(line)
    browser.evaluate(f"{choose}.value = 1, {choose}.dispatchEvent(new Event('change'))")
    assert browser.evaluate(line) != before
    browser.evaluate("document.querySelector('.heat tr:nth-child(3) td[data-m]').click()")
    assert browser.evaluate("document.querySelector('#chosen').textContent").startswith(
        "Instance nano-02"
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.faults == []


def test_the_script_draws_the_first_instance_as_the_page_has_it(large, browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(large[2])
    browser.open(path, 1280)
    lines = "[...document.querySelectorAll('.chart[id] .line')].map((p) => p.getAttribute('d'))"
    texts = "[...document.querySelectorAll('.chart[id] text')].map((t) => t.textContent).sort()"
    before = browser.evaluate(lines), browser.evaluate(texts)
    browser.evaluate(
        "document.querySelector('#choosers select').dispatchEvent(new Event('change'))"
    )
    after = browser.evaluate(lines), browser.evaluate(texts)

    assert before[1] == after[1]
    for old, new in zip(before[0], after[0], strict=True):
        a, b = ([float(x) for x in re.findall(r"-?[\d.]+", path)] for path in (old, new))
        # The script has the levels of a text. Far above the chart they are coarser.
        np.testing.assert_allclose(a, b, atol=0.6, rtol=2e-3)


def test_the_policy_stops_a_foreign_script(browser, tmp_path):
    board, rows = board_and_rows(2, 2)
    page = html_board(board, rows)
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", "<script>window.ran = 1</script></body>"))
    browser.open(path, 800)
    assert browser.evaluate("window.ran") is None
    assert browser.faults
    browser.faults.clear()
