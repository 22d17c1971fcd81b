"""The last step of digits.py: from search.json, test.json and test.npz to report.md and digits.png."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")  # draws into files, needs no screen
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

TITLES = {"svm": "Support vector machine", "neighbours": "Nearest neighbours", "bayes": "Naive Bayes"}
MEANING = {"svm": "penalty C", "neighbours": "number of neighbours", "bayes": "smoothing alpha"}
SCALING = {"none": "pixels as they are", "minmax": "scaled to 0 … 1", "standard": "standard scaling"}
INK, GREY, GREEN, RED = "#22303c", "#8795a1", "#1b7f5c", "#c8453b"
MISTAKES = 9
"""At most so many wrongly read digits are shown."""


def main() -> None:
    """Draw the picture, write the report around it, and print the result."""
    search = json.loads(Path("search.json").read_text(encoding="utf-8"))
    final = json.loads(Path("test.json").read_text(encoding="utf-8"))
    test = np.load("test.npz")
    model, scaling, setting = final["model"], final["scaling"], final["setting"]
    best = f"{TITLES[model]}, {MEANING[model]} {setting}, {SCALING[scaling]}"
    draw(search, final, test["pixels"], test["truth"])

    rows = [
        f"| {' | '.join(name.split('-')[1:])} | {result['attempts']} | {told(result)} |"
        for name, result in sorted(search.items(), key=lambda item: -item[1].get("accuracy", 0))
    ]
    page = f"""# Reading handwritten digits

Best of {len(search)} trainings: {best}.
It reads **{final["accuracy"]:.1%}** of {len(final["read"])} digits rightly that it had not seen before.

![Above: accuracy of every training. Below: the best model's answers to the test digits.](digits.png)

| model | scaling | setting | attempts | accuracy in cross-validation |
|---|---|---|---|---|
"""
    Path("report.md").write_text(page + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"best parameters: {best}")
    print(f"test accuracy:   {final['accuracy']:.1%}")
    print(f"report:          {Path('report.md').absolute()}")
    print(f"picture:         {Path('digits.png').absolute()}")


def told(result: dict[str, Any]) -> str:
    """One training's accuracy, or why there is none."""
    return f"{result['accuracy']:.2%}" if "accuracy" in result else f"failed: {result['error']}"


def draw(search: dict[str, Any], final: dict[str, Any], pixels: Any, truth: Any) -> None:
    """Above, every training; below, how the best one read the test digits, and what it took for something else."""
    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.titlesize": 11, "axes.titlepad": 9})
    figure: Any = plt.figure(figsize=(12, 9.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    draw_search(above, search, (final["model"], final["scaling"], final["setting"]))
    left, right = below.subfigures(1, 2, width_ratios=[1, 1])
    draw_answers(left, np.array(final["read"]), truth, final["accuracy"])
    draw_mistakes(right, np.array(final["read"]), truth, pixels)
    figure.savefig("digits.png", dpi=140, facecolor="white")


def draw_search(figure: Any, search: dict[str, Any], best: tuple[str, str, str]) -> None:
    """One field for each model: its scalings downwards, its settings to the right."""
    cells = {tuple(name.split("-")[1:]): result.get("accuracy", np.nan) for name, result in search.items()}
    settings = list(dict.fromkeys(setting for _, _, setting in cells))
    low, high = np.nanmin(list(cells.values())), np.nanmax(list(cells.values()))
    figure.suptitle("Accuracy in five-fold cross-validation", weight="bold", size=13)
    for axis, model in zip(figure.subplots(1, len(TITLES), sharey=True), TITLES, strict=True):
        grid = np.array([[cells[model, scaling, setting] for setting in settings] for scaling in SCALING])
        axis.imshow(grid, cmap="YlGnBu", vmin=low - 0.03, vmax=high + 0.01, aspect="auto")
        axis.set(title=TITLES[model], xlabel=MEANING[model])
        axis.set_xticks(range(len(settings)), settings)
        axis.set_yticks(range(len(SCALING)), list(SCALING.values()))
        plain(axis)
        for (row, column), accuracy in np.ndenumerate(grid):
            here = (model, list(SCALING)[row], settings[column])
            if np.isnan(accuracy):
                box(axis, column, row, facecolor="#f6f1ef", edgecolor="#d9c9c4", hatch="////", linewidth=0)
                label(axis, column, row, "failed", RED)
                continue
            dark = accuracy > low + 0.55 * (high - low)
            label(axis, column, row, f"{accuracy:.1%}", "white" if dark else INK, bold=here == best)
            if here == best:
                box(axis, column, row, facecolor="none", edgecolor="#f28e2b", linewidth=3, zorder=3)


def draw_answers(figure: Any, read: Any, truth: Any, accuracy: float) -> None:
    """How often each digit was read as which."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (truth, read), 1)
    right = np.eye(10, dtype=bool)
    figure.suptitle(f"The best model on unseen digits: {accuracy:.1%} right", weight="bold", size=13)
    axis = figure.subplots()
    shade = np.where(right, counts / counts.max() * 0.75, 0)
    axis.imshow(shade, cmap="Greens", vmin=0, vmax=1)
    axis.set(xlabel="read as", ylabel="digit written")
    axis.set_xticks(range(10))
    axis.set_yticks(range(10))
    plain(axis)
    for (row, column), count in np.ndenumerate(counts):
        if count and row != column:
            box(axis, column, row, facecolor="#fbe3df", edgecolor="none")
        label(axis, column, row, str(count or "·"), GREY if not count else "white" if row == column else RED)


def draw_mistakes(figure: Any, read: Any, truth: Any, pixels: Any) -> None:
    """The test digits that were read wrongly, as they were written."""
    wrong = np.flatnonzero(read != truth)
    shown = wrong[:MISTAKES]
    more = "" if len(wrong) == len(shown) else f", {len(shown)} of them"
    figure.suptitle(f"The {len(wrong)} it got wrong{more}", weight="bold", size=13)
    axes = figure.subplots(3, 3).flat
    for axis in axes[len(shown) :]:
        axis.axis("off")
    for axis, number in zip(axes, shown, strict=False):
        axis.imshow(pixels[number].reshape(8, 8), cmap="gray_r")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#d5dbe0")
        axis.set_title(f"{truth[number]}, read as {read[number]}", size=10, color=RED, pad=5)


def plain(axis: Any) -> None:
    """No frame, no tick marks; thin white lines between the fields."""
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(-0.5, axis.get_xlim()[1]), minor=True)
    axis.set_yticks(np.arange(-0.5, axis.get_ylim()[0]), minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)


def label(axis: Any, x: float, y: float, words: str, colour: str, *, bold: bool = False) -> None:
    """Words in the middle of a field."""
    axis.text(x, y, words, ha="center", va="center", color=colour, weight="bold" if bold else "normal", zorder=4)


def box(axis: Any, x: float, y: float, **look: Any) -> None:
    """A field with a look of its own."""
    axis.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, **look))


if __name__ == "__main__":
    main()
