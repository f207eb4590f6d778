"""The page of a report: what it says, what it cannot be made to do, and who can read it."""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from tests.unit.worker.reports import (
    LABELS,
    Document,
    Scene,
    adapted,
    bootstrapped,
    gone,
    picture,
    registered,
)

from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.worker.report import render
from acclimate_service.worker.thumbnails import MOST_BYTES

ACCEPTED = Scene(source_images=800)
REJECTED = Scene(source_lost=0.06)
UNDECIDED = Scene(source_images=60, target_images=40)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{unclosed",
    "nul\x00 bell\x07 esc\x1b[31m \u202egnp.exe lone\ud800",
    "]]></style></svg><iframe src=//evil.example>",
    "x" * 5000,
)
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def brief(scene: Scene) -> Document:
    """The document without its training, whose curves take most of the time to draw."""
    return {**adapted(scene), "engine": None}


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {
        "ACCEPT": adapted(ACCEPTED),
        "REJECT": adapted(REJECTED),
        "INCONCLUSIVE": adapted(UNDECIDED),
        "first": bootstrapped(),
        "too few": {**bootstrapped(images=20), "engine": None},
        "guessing": {**bootstrapped(right=0.1), "engine": None},
        "registered": registered(),
        "measured": registered(images=40),
    }


@pytest.fixture(scope="module")
def pages(documents: dict[str, Document]) -> dict[str, str]:
    return {name: render(told, read=picture) for name, told in documents.items()}


# ── what it says ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("decision", "shape"),
    [("ACCEPT", "M7.4 12.4"), ("REJECT", "M8 2h8"), ("INCONCLUSIVE", "M12 1.6L22.4")],
)
def test_the_verdict_comes_first_as_a_word_and_a_shape(
    pages: dict[str, str], decision: str, shape: str
) -> None:
    top = pages[decision].partition('id="why"')[0]
    assert f"<strong>{decision}</strong>" in top
    assert shape in top
    assert top.index(decision) < top.index("What to do next")


def test_every_answer_in_the_table_of_checks_is_a_word(pages: dict[str, str]) -> None:
    answers = re.findall(r'<span class="outcome (\w+)">.*?</svg>(\w*)</span>', pages["REJECT"])
    assert len(answers) > 10
    assert all(tone == word for tone, word in answers)


def test_every_check_and_its_numbers_are_shown(
    documents: dict[str, Document], pages: dict[str, str]
) -> None:
    checks = documents["REJECT"]["verdict"]["checks"]
    assert pages["REJECT"].count('<span class="outcome ') == len(checks)
    for check in checks:
        if check["decision"] != "ACCEPT":
            assert check["message"] in pages["REJECT"]


def test_the_deciding_checks_stand_above_the_others(pages: dict[str, str]) -> None:
    answers = re.findall(r'<span class="outcome (\w+)">', pages["REJECT"])
    assert answers == sorted(answers, key=["REJECT", "INCONCLUSIVE", "ACCEPT"].index)


def test_an_adaptation_shows_all_that_was_measured(pages: dict[str, str]) -> None:
    page = Page(pages["REJECT"])
    ids = {attributes.get("id") for attributes in page.all("h2")}
    expected = {"next", "why", "standing", "classes", "confusions", "flips", "training"}
    assert expected | {"suspects", "copies", "provenance"} == ids
    labels = [attributes["aria-label"] for attributes in page.all("svg") if "role" in attributes]
    assert [str(label).split()[0] for label in labels] == ["Accuracy", "Learning", "Blends"]


def test_findings_are_named_with_their_evidence(pages: dict[str, str]) -> None:
    assert "train accuracy levelled off at 78.0%" in pages["ACCEPT"]
    assert "blended back towards the incumbent" in pages["ACCEPT"]


@pytest.mark.parametrize("name", ["first", "too few", "guessing"])
def test_a_first_version_is_told_without_a_before(pages: dict[str, str], name: str) -> None:
    assert "Right before" not in pages[name]
    assert "always answering the most frequent class" in pages[name]


def test_a_registration_is_said_to_be_unjudged(pages: dict[str, str]) -> None:
    assert "NOT JUDGED" in pages["registered"]
    assert "There are no verify images" in pages["registered"]
    assert "There are no verify images" not in pages["measured"]


def test_label_suspects_are_listed_with_what_they_look_like() -> None:
    told = brief(ACCEPTED)
    suspect = {"id": "a.jpg", "blob": "f" * 64, "label": "mug", "suggested": "bike"}
    told["label_suspects"] = [{**suspect, "confidence": 0.97}]
    page = render(told, read=picture)
    assert 'id="suspects"' in page
    assert "rather bike, 97.0% sure" in page


def test_a_thousand_labels_become_the_pairs_that_changed_most() -> None:
    labels = tuple(f"class {i}" for i in range(1000))
    told = brief(Scene(labels=labels, source_images=1500, target_images=1500))
    page = render(told, read=picture)
    assert 'class="grid"' not in page
    assert "The confusions that changed most" in page
    rows = re.findall(r'<tr><th scope="row">class \d+</th>', page)
    assert 40 <= len(rows) <= 3 * (40 + 24)
    assert len(page) < 1_000_000
    assert len(json.dumps(told, indent=1)) < 1_500_000


def test_two_labels_have_a_matrix_of_two_by_two() -> None:
    page = render(brief(Scene(labels=("cat", "dog"))), read=picture)
    grid = page.partition('<table class="grid">')[2].partition("</table>")[0]
    assert len(re.findall(r"<td class=", grid)) == 4


def test_cells_of_the_confusion_add_up_to_the_images(documents: dict[str, Document]) -> None:
    for shown in documents["REJECT"]["sets"]:
        for which in ("confusion_before", "confusion_after"):
            assert sum(cell[2] for cell in shown[which]) == shown["images"]


# ── what it cannot be made to do ─────────────────────────────────────────────


def hostile() -> Document:
    """A document whose every free text is an attack."""
    told = adapted(Scene(labels=HOSTILE, source_lost=0.06))

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: HOSTILE[index % 8]
                if key in ("id", "message", "summary", "reason", "evidence", "response")
                else poisoned(one)
                for index, (key, one) in enumerate(value.items())
            }
        return [poisoned(one) for one in value] if isinstance(value, list) else value

    poisoned_told: Document = poisoned(told)
    poisoned_told["libraries"] = {HOSTILE[1]: HOSTILE[0]}
    poisoned_told["digests"] = {HOSTILE[2]: HOSTILE[6]}
    poisoned_told["job"]["spec"]["promote_to"] = HOSTILE[1]
    return poisoned_told


@pytest.fixture(scope="module")
def attacked() -> str:
    return render(hostile(), read=picture)


def test_hostile_text_stays_text(attacked: str) -> None:
    page = Page(attacked)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
    handlers = [name for _, found in page.elements for name in found if name.startswith("on")]
    assert handlers == []
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert page.open == []


def test_hostile_text_is_printable_and_bounded(attacked: str) -> None:
    attacked.encode()  # a lone surrogate would not be
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", attacked)
    assert "x" * 200 not in attacked
    assert len(attacked) < 2_000_000


@pytest.mark.parametrize("name", ["ACCEPT", "first", "registered"])
def test_a_page_asks_the_network_for_nothing(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert "http:" not in pages[name].lower()
    assert "https:" not in pages[name].lower()
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", pages[name])
    for _, attributes in page.elements:
        for attribute in ("src", "href", "data", "srcset", "action"):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)|@import", pages[name])
    assert page.all("script") == []


def rotten(blob: str) -> bytes:
    return b"\xff\xd8\xff" + blob.encode()


@pytest.mark.parametrize("read", [gone, rotten])
def test_an_image_that_cannot_be_read_is_an_empty_frame(
    documents: dict[str, Document], read: Callable[[str], bytes]
) -> None:
    page = render({**documents["INCONCLUSIVE"], "engine": None}, read=read)
    assert "<img" not in page
    assert page.count("no picture") > 3


def test_a_store_out_of_reach_is_not_a_missing_picture(documents: dict[str, Document]) -> None:
    def refuse(blob: str) -> bytes:
        raise StoreUnavailable(f"the disk refuses {blob}")

    with pytest.raises(StoreUnavailable):
        render(documents["ACCEPT"], read=refuse)


def test_pictures_are_bounded_in_number_and_bytes() -> None:
    rng = np.random.default_rng(0)
    encoded = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(encoded, "PNG")
    many = tuple(f"site-{i}" for i in range(6))
    told = brief(Scene(source_lost=0.3, target_lost=0.2, target_gained=0.3, earlier=many))
    page = Page(render(told, read=lambda blob: encoded.getvalue()))
    sources = [str(image["src"]) for image in page.all("img")]
    assert 20 < len(sources) <= 8 * 36
    assert sum(map(len, sources)) <= MOST_BYTES


# ── who can read it ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["REJECT", "first", "measured"])
def test_a_page_can_be_read_by_those_who_do_not_see_it(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert page.open == []
    assert page.all("html")[0]["lang"] == "en"
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-hidden") or svg.get("aria-label") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


@pytest.mark.parametrize("name", ["REJECT", "first"])
def test_no_two_elements_have_the_same_id(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    ids = [found["id"] for _, found in page.elements if found.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([\w.-]+)', pages[name])
    assert set(targets) <= set(ids)


# ── how it is drawn ──────────────────────────────────────────────────────────


def test_the_same_document_gives_the_same_bytes(
    documents: dict[str, Document], pages: dict[str, str]
) -> None:
    assert render(copy.deepcopy(documents["REJECT"]), read=picture) == pages["REJECT"]


def test_drawing_leaves_the_settings_of_the_plots_alone(documents: dict[str, Document]) -> None:
    before = dict(mpl.rcParams)
    render(documents["ACCEPT"], read=picture)
    assert dict(mpl.rcParams) == before


def test_figures_are_small(pages: dict[str, str]) -> None:
    figures = re.findall(r'<svg role="img".*?</svg>', pages["REJECT"], flags=re.DOTALL)
    assert len(figures) == 3
    assert all(len(figure) < 40_000 for figure in figures)


def test_a_candidate_that_answers_nonsense_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.worker import reports

    answers = reports._answers

    def broken(*args: Any) -> Any:
        found = answers(*args)
        found[::7] = np.nan
        return found

    monkeypatch.setattr(reports, "_answers", broken)
    told = reports.drawn.__wrapped__(ACCEPTED)
    json.dumps(told, allow_nan=False)
    page = render(told, read=picture)
    assert "<strong>REJECT</strong>" in page
    assert "not a probability distribution" in page


@pytest.mark.parametrize(
    "scene", [Scene(target_images=0), Scene(source_images=0), Scene(earlier=())], ids=repr
)
def test_sets_without_images_are_no_obstacle(scene: Scene) -> None:
    told = brief(scene)
    json.dumps(told, allow_nan=False)
    assert "What to do next" in render(told, read=picture)


@pytest.mark.parametrize("name", ["ACCEPT", "first", "registered"])
def test_a_document_is_json(documents: dict[str, Document], name: str) -> None:
    told = documents[name]
    assert json.loads(json.dumps(told, allow_nan=False)) == json.loads(json.dumps(told))
    assert tuple(told["labels"]) == LABELS
    assert told["libraries"]["numpy"] == np.__version__
