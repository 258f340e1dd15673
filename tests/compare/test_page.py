"""The page as text: it answers, shows failures, escapes all text, and makes no request."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from ddm_jax.compare.page import render
from ddm_jax.compare.report import make_report
from ddm_jax.compare.results import read_result
from ddm_jax.compare.summary import label_runs
from tests.compare.made import make_run
from tests.compare.reports import NASTY, full_report

SECTIONS = [
    "Which objective models the text best", "What each layout costs",
    "Whether a layout changes anything", "What the samples look like",
    "Quality against network evaluations", "All runs", "How to reproduce it",
]  # fmt: skip


class Reader(HTMLParser):
    """Elements with their attributes, the text, and whether tags are closed in order."""

    EMPTY = ("meta", "link", "img", "br", "path", "use", "rect")

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._open = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text += data

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return full_report(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(report):
    # as it is read back: what is not plain JSON would differ
    return render(json.loads(json.dumps(report)))


def test_sections_answer_in_order(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == SECTIONS
    words = " ".join(Reader(page).text.split())
    assert "At equal steps (30): ar 3.050 ± 0.071, then gidd 4.050 ± 0.071." in words
    assert "mlm" not in re.search(r"At equal steps.*?At equal time.*?\.", words)[0]
    assert "a pseudo-likelihood, not comparable with bounds" in words
    assert "Compared with dp, a training step takes 1.00 times as long under tp" in words
    # 1e-5 of a loss of 3
    assert "The largest relative difference to dp is 3.3e-06" in words
    assert "below the limit of 0.0001" in words
    assert "123.4" in words  # the judge's perplexity


def test_a_difference_above_the_limit_is_said(tmp_path):
    runs = [
        make_run(tmp_path / "a", losses=(4.0, 2.0)),
        make_run(tmp_path / "b", layout="tp", losses=(4.0, 2.1)),
    ]
    page = render(make_report(label_runs([read_result(r) for r in runs]), ["dp"], None, ""))
    assert "NOT below the limit" in page
    assert ">ABOVE<" in page


def test_failures_and_unfinished_runs_are_at_the_top_with_their_reasons(page):
    words = " ".join(Reader(page).text.split())
    top = words[: words.index(SECTIONS[0])]
    assert "12 of 14 runs finished, 1 failed, 1 not finished" in top
    assert "fsdp, seed 0 failed: It says </article>" in top
    assert "unfinished: not started" in top


def test_a_page_of_nothing_finished_still_says_so(tmp_path):
    part = read_result(make_run(tmp_path / "a", nll=(), losses=(1.0,), steps=50))
    page = render(make_report([part], [], None, ""))
    assert "No run has finished yet." in page
    assert "at step 10 of 50" in page


def test_text_of_others_is_escaped(page):
    reader = Reader(page)
    assert page.count(NASTY) == 0
    assert len(reader.scripts) == 1  # its own
    assert not reader.of("img")
    # samples, judge, reason (twice), command (twice), the texts' failure
    assert reader.text.count("document.title = 'broken'") >= 6


def test_nothing_is_loaded_and_no_script_but_its_own_may_run(page):
    reader = Reader(page)
    for _, attrs in reader.elements:
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attrs
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:,"))
    assert not re.search(r"@import|url\((?!#)", page)
    (policy,) = [m["content"] for m in reader.of("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none';")
    (script,) = reader.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_used_once_and_references_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in Reader(page).elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", page)) <= set(ids)


def test_every_plot_is_there_and_takes_the_width_it_is_given(page):
    drawings = Reader(page).of("svg")
    assert len(drawings) == 7
    for attrs in drawings:
        assert "viewbox" in attrs
        assert "width" not in attrs


def test_plots_tell_objectives_apart_without_colour(report):
    from ddm_jax.compare.plots import STYLES, style

    for of in (1, 2, 3):
        assert len({str(one[of]) for one in STYLES}) == len(STYLES)
    assert style(report, "ar") != style(report, "gidd")


def test_the_record_holds_what_the_page_shows(report):
    assert report["counts"] == {"runs": 14, "finished": 12, "failed": 1}
    run = report["runs"][0]
    assert run["config"]["objective"]["name"] == "ar"
    assert run["git_revision"] == "abc"
    assert run["validation"][-1][:2] == [30, 3.0]
    assert report["machine"]["cores"] > 0
    json.dumps(report, allow_nan=False)
