"""The picture of a run: success over updates with held-out measurements, and what to watch beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import DataError
from agentrl.files import writing
from agentrl.runs import Row, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUCCESS, REWARD = "success", "reward"
"""Keys of the training curves in a row of metrics: means over the episodes of one update."""
HELD_OUT, HELD_OUT_LOW, HELD_OUT_HIGH = "held_out/success", "held_out/success_low", "held_out/success_high"
"""Keys of a held-out measurement: success rate and its interval."""
SIDE_PANELS = {
    REWARD: "Reward per episode",
    "entropy": "Entropy per sampled token (nats)",
    "tool_calls": "Tool calls per episode",
    "kl_reference": "KL to the reference (nats)",
}
"""Keys of the small panels, drawn where a run has them."""

_BLUE, _ORANGE, _GRAY, _INK = "#2563eb", "#ea580c", "#9ca3af", "#1f2937"


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over updates; both lists have the same length."""

    updates: list[float]
    values: list[float]


def read_curve(rows: Sequence[Row], key: str) -> Curve:
    """The finite values of one metric; rows without it are passed over."""
    points = [(row["update"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return Curve([float(x) for x, _ in points], [float(y) for _, y in points])


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential moving average without the bias towards its start: sum_i a^(n-i) x_i / sum_i a^(n-i).

    Args:
        values: One per update.
        span: Number of values it averages over, a = 1 - 2 / (span + 1).
    """
    decay = 1 - 2 / (span + 1)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight)
    return means


def plot_curves(metrics_path: Path, png_path: Path) -> None:
    """Draws the metrics of a run: success or reward in training, held-out success with intervals, small panels beside.

    Args:
        metrics_path: The metrics.jsonl of a run.
        png_path: Where the picture goes.

    Raises:
        CheckpointError: The metrics cannot be read or the picture cannot be written.
        DataError: There is nothing to draw.
    """
    rows = read_metrics(metrics_path)
    drawn = {key for key in (SUCCESS, REWARD, HELD_OUT, *SIDE_PANELS) if read_curve(rows, key).values}
    if not drawn & {SUCCESS, REWARD, HELD_OUT}:
        raise DataError(f"{metrics_path} has nothing to draw: no row with {SUCCESS!r}, {REWARD!r} or {HELD_OUT!r}.")
    main = SUCCESS if drawn & {SUCCESS, HELD_OUT} else REWARD
    if main == REWARD or read_curve(rows, SUCCESS) == read_curve(rows, REWARD):
        drawn.discard(REWARD)  # a second panel would show the same
    side = [key for key in SIDE_PANELS if key in drawn]

    # Imported here because it takes a second; its own classes and not pyplot because no window is wanted.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.8) if side else (7.5, 4.8), dpi=130, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(max(1, len(side)), 2 if side else 1, width_ratios=[2.4, 1] if side else [1])
    wide = figure.add_subplot(grid[:, 0])
    _draw_main(wide, rows, main)
    for index, key in enumerate(side):
        axes = figure.add_subplot(grid[index, 1], sharex=wide)
        _draw_curve(axes, read_curve(rows, key), _INK, None)
        _dress(axes, SIDE_PANELS[key], small=True)
        last = index == len(side) - 1
        axes.tick_params(labelbottom=last)
        axes.set_xlabel("update" if last else "", fontsize=9, color=_INK)
    with writing(png_path):
        FigureCanvasAgg(figure).print_png(str(png_path))


def _draw_main(axes: "Axes", rows: Sequence[Row], key: str) -> None:
    is_rate = key == SUCCESS
    scale = 100.0 if is_rate else 1.0
    curve = read_curve(rows, key)
    _draw_curve(axes, Curve(curve.updates, [scale * y for y in curve.values]), _BLUE, "training episodes")
    if is_rate:
        _draw_held_out(axes, [row for row in rows if isinstance(row.get(HELD_OUT), int | float)])
    _dress(axes, "Success rate (%)" if is_rate else "Reward per episode", small=False)
    if is_rate:
        axes.set_ylim(0, 102)
    axes.set_xlabel("update", color=_INK)
    axes.legend(loc="lower right", frameon=False, labelcolor=_INK)


def _draw_held_out(axes: "Axes", rows: Sequence[Row]) -> None:
    from matplotlib.patheffects import withStroke

    for number, row in enumerate(rows):
        value = 100 * row[HELD_OUT]
        low, high = (value if row.get(key) is None else 100 * row[key] for key in (HELD_OUT_LOW, HELD_OUT_HIGH))
        label = "held-out tasks" if number == 0 else None
        axes.errorbar(
            row["update"],
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            markersize=7,
            capsize=4,
            linewidth=1.8,
            color=_ORANGE,
            label=label,
            zorder=5,
            clip_on=False,
        )
        if number in (0, len(rows) - 1):  # before and after
            axes.annotate(
                f"{value:.1f} %",
                (row["update"], low),
                xytext=(-8 if number == 0 else 8, -16),
                textcoords="offset points",
                ha="left" if number == 0 else "right",
                color=_ORANGE,
                fontweight="bold",
                path_effects=[withStroke(linewidth=3, foreground="white")],
                zorder=6,
            )


def _draw_curve(axes: "Axes", curve: Curve, color: str, label: str | None) -> None:
    """The raw values pale, their moving average in full color; few values are drawn as they are."""
    span = max(1.0, len(curve.values) / 15)
    if span >= 2:
        axes.plot(curve.updates, curve.values, color=color, alpha=0.22, linewidth=1)
        axes.plot(curve.updates, smooth(curve.values, span), color=color, linewidth=2, label=label)
    else:
        axes.plot(curve.updates, curve.values, color=color, linewidth=2, label=label, marker="o", markersize=3)


def _dress(axes: "Axes", title: str, *, small: bool) -> None:
    axes.set_title(title, loc="left", fontsize=9 if small else 12, fontweight="bold", color=_INK)
    axes.grid(axis="y", color=_GRAY, alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRAY)
    axes.tick_params(colors=_INK, labelsize=8 if small else 10)
    axes.margins(x=0.03, y=0.15 if small else 0.05)
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)  # a curve that starts elsewhere looks steeper than it is
