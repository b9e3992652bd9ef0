"""The plot of the loss: what is drawn, where, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adapterhub.ops._loss_plot import loss_plot

SVG = "{http://www.w3.org/2000/svg}"
METRICS = {"eval_loss_base": 3.0, "eval_loss": 1.5}


def log(tmp_path: Path, losses: list[float]) -> Path:
    lines = [json.dumps({"step": 10 * (index + 1), "loss": loss}) for index, loss in enumerate(losses)]
    (tmp_path / "training_log.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "training_log.jsonl"


def drawn(tmp_path: Path, losses: list[float], metrics: dict[str, float]) -> ElementTree.Element:
    text = loss_plot(log(tmp_path, losses), metrics)
    assert text is not None
    return ElementTree.fromstring(text)


def lines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in item.attrib["points"].split())]
        for item in root.iter(f"{SVG}polyline")
    ]


def test_training_and_held_out_losses_are_drawn_to_one_scale(tmp_path: Path) -> None:
    root = drawn(tmp_path, [3.0, 2.0, 1.0], METRICS)
    train, held_out = lines(root)
    assert [x for x, _ in train] == sorted(x for x, _ in train)
    assert len(train) == 3
    assert train[0][1] < train[1][1] < train[2][1]  # down the page is a lower loss
    assert train[1][1] - train[0][1] == pytest.approx(train[2][1] - train[1][1], abs=0.2)
    assert held_out[0][1] == train[0][1]  # both 3.0
    assert held_out[1][0] == train[2][0]  # after the last step
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    texts = [item.text for item in root.iter(f"{SVG}text")]
    assert {"step", "loss of a token", "training", "1", "2", "3", "0", "20"} <= set(texts)
    for points in lines(root):
        assert all(0 <= x <= 640 and 0 <= y <= 320 for x, y in points)


def test_without_held_out_rows_the_training_is_drawn_alone(tmp_path: Path) -> None:
    assert len(lines(drawn(tmp_path, [3.0, 2.0], {"train_loss": 2.0}))) == 1


def test_a_flat_loss_and_one_point_can_be_drawn(tmp_path: Path) -> None:
    assert lines(drawn(tmp_path, [2.0, 2.0], {}))
    root = drawn(tmp_path, [2.0], METRICS)
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_a_long_log_is_thinned_by_means(tmp_path: Path) -> None:
    root = drawn(tmp_path, [4.0, 2.0] * 1000, {})
    assert len(lines(root)[0]) == 400
    shown = {item.text for item in root.iter(f"{SVG}text")}
    assert {"2.8", "3.2"} <= shown  # means of five: 4 2 4 2 4, then 2 4 2 4 2
    assert not {"2", "4"} & shown


@pytest.mark.parametrize("losses", [[], [1.0]])
def test_nothing_is_drawn_of_nothing(tmp_path: Path, losses: list[float]) -> None:
    assert loss_plot(log(tmp_path, losses), {}) is None
