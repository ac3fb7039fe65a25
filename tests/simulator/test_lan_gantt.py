"""The chart: valid XML that shows every attempt, every load and every absence."""

from xml.etree import ElementTree as ET

import pytest

from koubou_simulator.lan.gantt import draw
from koubou_simulator.lan.outcome import Outcome
from koubou_simulator.lan.scenarios import SETTINGS
from koubou_simulator.lan.things import MODEL, OTHER_MODEL, Absence, BoxSpec, Job
from koubou_simulator.lan.ways import play

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    both = (MODEL, OTHER_MODEL)
    boxes = (
        BoxSpec("desk <1> & co", 1.0, models=both),
        BoxSpec("flaky", 1.0, models=both, absences=(Absence(40.0, 90.0, is_crash=True),)),
    )
    jobs = [Job(0.0, 500, 315, both[nth % 2], priority=1 + nth % 10) for nth in range(20)]
    return play("fifo", SETTINGS, boxes, jobs, seed=1)


def classes(picture: ET.Element, first: str) -> list[ET.Element]:
    """The bars of a kind that have a text of their own."""
    rects = picture.iter(f"{SVG}rect")
    return [one for one in rects if one.get("class", "").split()[:1] == [first] and one.find(f"{SVG}title") is not None]


def test_every_attempt_load_and_absence_is_a_bar_with_words(outcome: Outcome) -> None:
    picture = ET.fromstring(draw("A run", outcome))
    stories = outcome.boxes.values()
    assert len(classes(picture, "task")) == sum(len(story.spans) for story in stories)
    assert len(classes(picture, "load")) == sum(len(story.loads) for story in stories)
    assert len(classes(picture, "away")) == 1
    words = {one.text or "" for one in picture.iter(f"{SVG}title")}
    assert any(word.startswith("task 1, ") and "succeeded after" in word for word in words)
    assert any("lost after" in word for word in words)
    assert f"loads {MODEL}" in words


def test_no_bar_leaves_the_picture() -> None:
    boxes = (BoxSpec("there", 1.0), BoxSpec("gone", 1.0, absences=(Absence(5.0, 1e6),)))
    picture = ET.fromstring(draw("A run", play("fifo", SETTINGS, boxes, [Job(0.0, 500, 315)] * 5, seed=1)))
    width, height = float(picture.get("width", "0")), float(picture.get("height", "0"))
    for bar in picture.iter(f"{SVG}rect"):
        if bar.get("x") is None:
            continue
        assert 0 <= float(bar.get("x", "")) <= float(bar.get("x", "")) + float(bar.get("width", "")) <= width
        assert 0 <= float(bar.get("y", "")) <= float(bar.get("y", "")) + float(bar.get("height", "")) <= height


def test_names_are_escaped_and_the_legend_names_what_is_drawn(outcome: Outcome) -> None:
    picture = ET.fromstring(draw('A "run" <of> & more', outcome))
    texts = [one.text or "" for one in picture.iter(f"{SVG}text")]
    assert 'A "run" <of> & more' in texts
    assert "desk <1> & co" in texts
    assert {MODEL, OTHER_MODEL, "loads a model", "lost with its box", "away"} <= set(texts)


def test_where_there_is_one_model_the_colours_are_the_bands() -> None:
    jobs = [Job(0.0, 500, 315, priority=priority) for priority in (1, 5, 9)]
    outcome = play("priority_based", SETTINGS, (BoxSpec("box", starts_loaded=True),), jobs, seed=1)
    picture = ET.fromstring(draw("Bands", outcome))
    texts = {one.text for one in picture.iter(f"{SVG}text")}
    assert {"priority 8-10", "priority 5-7", "priority 1-4"} <= texts
    assert "loads a model" not in texts
    assert len({bar.get("fill") for bar in classes(picture, "task")}) == 3
