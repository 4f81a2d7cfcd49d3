"""The picture of a run: what it draws, read back from its pixels, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agentrl.errors import CheckpointError, DataError
from agentrl.evaluation.curves import Curve, plot_curves, read_curve, smooth

BLUE, ORANGE = (0x25, 0x63, 0xEB), (0xEA, 0x58, 0x0C)
Row = dict[str, Any]


def training(num_updates: int, **others: float) -> list[Row]:
    return [{"update": u, "success": 0.5 + 0.4 * u / num_updates, **others} for u in range(1, num_updates + 1)]


def held_out(update: int, success: float) -> Row:
    return {
        "update": update,
        "held_out/success": success,
        "held_out/success_low": success - 0.05,
        "held_out/success_high": success + 0.02,
    }


def draw(tmp_path: Path, rows: list[Row]) -> NDArray[np.uint8]:
    """The pixels of the picture of these metrics, [height, width, 3]."""
    from matplotlib.image import imread

    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")
    return (255 * pixels[:, :, :3]).round().astype(np.uint8)


def where(pixels: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.intp]:
    """Rows and columns of the pixels of exactly this color, [n, 2]."""
    return np.argwhere((pixels == np.array(color, dtype=np.uint8)).all(axis=2))


def test_training_curve_and_held_out_points_stand_where_they_belong(tmp_path: Path) -> None:
    pixels = draw(tmp_path, [held_out(0, 0.2), *training(30, entropy=0.3, tool_calls=1.0), held_out(30, 0.95)])
    height, width, _ = pixels.shape
    curve, points = where(pixels, BLUE), where(pixels, ORANGE)
    assert len(curve) > 300
    points = points[points[:, 0] < 0.75 * height]  # the legend is below
    first, last = points[points[:, 1] < width / 3], points[points[:, 1] > width / 3]
    assert len(first) > 50
    assert len(last) > 50
    assert first[:, 0].mean() > 0.6 * height  # 20 % is low, 95 % is high (row 0 is the top)
    assert last[:, 0].mean() < 0.25 * height
    assert curve[:, 1].max() < 0.75 * width  # the panels to the right are not blue


def test_without_measurements_there_are_no_points(tmp_path: Path) -> None:
    pixels = draw(tmp_path, training(30))
    assert len(where(pixels, ORANGE)) == 0
    assert len(where(pixels, BLUE)) > 300


def test_the_picture_is_narrow_without_side_panels(tmp_path: Path) -> None:
    alone = draw(tmp_path, training(3)).shape[1]
    same = draw(tmp_path, [{**row, "reward": row["success"]} for row in training(3)]).shape[1]
    beside = draw(tmp_path, training(3, reward=0.1)).shape[1]
    assert alone == same < beside  # a reward equal to success is not drawn twice


def test_reward_is_the_main_curve_of_a_run_without_success(tmp_path: Path) -> None:
    rows: list[Row] = [{"update": u, "reward": -2.0 + u / 10, "kl_reference": None} for u in range(40)]
    assert len(where(draw(tmp_path, rows), BLUE)) > 300


def test_measurements_alone_are_a_picture(tmp_path: Path) -> None:
    bare = {"update": 0, "held_out/success": 0.5, "held_out/success_low": None}
    assert len(where(draw(tmp_path, [bare]), ORANGE)) > 50


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl has nothing to draw"):
        draw(tmp_path, [{"update": 1, "entropy": 0.3}])
    assert not (tmp_path / "curves.png").exists()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read .*none\.jsonl: No such file"):
        plot_curves(tmp_path / "none.jsonl", tmp_path / "curves.png")
    draw(tmp_path, training(3))
    with pytest.raises(CheckpointError, match=r"Cannot write .*curves\.png: No such file or directory"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "no" / "curves.png")


def test_read_curve_passes_over_what_is_missing() -> None:
    rows: list[Row] = [{"update": 1, "a": 2}, {"update": 2, "a": None}, {"update": 3}, {"update": 4, "a": 0.5}]
    assert read_curve(rows, "a") == Curve([1.0, 4.0], [2.0, 0.5])


def test_smooth_by_hand() -> None:
    # span 3: a = 1 - 2/4 = 0.5. (1), (0.5 + 4) / 1.5, (0.25 + 2 + 1) / 1.75
    assert smooth([1, 4, 1], 3) == pytest.approx([1, 3, 3.25 / 1.75], abs=1e-12)
    assert smooth([2.5] * 9, 7) == pytest.approx([2.5] * 9, abs=1e-12)  # no bias towards zero at the start
    assert smooth([1, 5, 2], 1) == [1, 5, 2]


def test_importing_the_package_loads_neither_matplotlib_nor_torch() -> None:
    program = "import sys, agentrl.evaluation.curves; print({'matplotlib', 'torch', 'transformers'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
