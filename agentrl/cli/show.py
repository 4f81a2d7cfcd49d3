"""`agentrl show`: trajectories of a run, read in the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from agentrl.cli.tree_view import GIVEN, SAMPLED, UNSURE, UNSURE_NATS, VERY_UNSURE, VERY_UNSURE_NATS, Decode, tree_lines
from agentrl.config import load_config
from agentrl.errors import CheckpointError, ConfigError, DataError
from agentrl.runs import RUNS, RunFolder
from agentrl.trajectory import Tree


def show(path: Path, number: int | None) -> None:
    """Prints one stored tree of a run.

    Args:
        path: A run folder, or its name under `runs/`.
        number: Which tree, counted from 1; None for the last.

    Raises:
        CheckpointError: No run, or a run without trees.
        ConfigError: There is no tree of that number.
    """
    run = RunFolder.open(path if path.exists() else RUNS / path)
    tree, number, total = pick_tree(run.trees_path, number)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_title(tree, number, total))
    if console.is_terminal:
        console.print(_legend())
    for line in tree_lines(tree, load_decoder(run)):
        console.print(line)


def pick_tree(path: Path, number: int | None) -> tuple[Tree, int, int]:
    """One tree of a file, its number and how many there are; only that one is parsed.

    Raises:
        CheckpointError: There are no trees.
        ConfigError: There is no tree of that number.
        DataError: The row is damaged.
    """
    chosen, total = "", 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break  # a kill cut it off, or it is being written
                total += 1
                if number is None or total == number:
                    chosen = line
    except FileNotFoundError:
        pass
    if not total:
        raise CheckpointError(f"{path.parent} has no stored trajectories.")
    if not chosen:
        raise ConfigError(f"{path.parent} has {total} stored trees; --tree must be 1 to {total}, got {number}.")
    try:
        return Tree.from_json(json.loads(chosen)), number or total, total
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, row {number or total} is not a trajectory tree: {error!r}") from error


def load_decoder(run: RunFolder) -> Decode:
    """How the run's token ids become text: the tokenizer of its latest checkpoint, or of the model it started from.

    Raises:
        ConfigError: The model folder is wrong.
        PolicyError: The model's tokenizer cannot be loaded.
    """
    saved = sorted(run.checkpoints_path.glob("*/tokenizer.json"))
    if saved:
        from tokenizers import Tokenizer  # a tenth of the time that transformers takes

        tokenizer = Tokenizer.from_file(str(saved[-1]))
    else:
        from agentrl.policies.loading import load_tokenizer
        from agentrl.trainers.settings import TrainSettings

        tokenizer = load_tokenizer(load_config(TrainSettings, run.config_path).model.name)

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    return decode


def _title(tree: Tree, number: int, total: int) -> Text:
    solved = sum(leaf.success for leaf in tree.valid_leaves)
    about = "".join(f", {key} {value}" for key, value in tree.metadata.items() if isinstance(value, str | int | float))
    return Text(
        f"tree {number} of {total}: task {tree.task_id}{about}; {len(tree.leaves)} trajectories, {solved} successful; "
        f"{tree.num_tokens} unique tokens, {tree.num_path_tokens} along the paths",
        "bold",
    )


def _legend() -> Text:
    return Text.assemble(
        ("sampled", SAMPLED),
        "  ",
        (f"entropy from {UNSURE_NATS} nats", UNSURE),
        "  ",
        (f"from {VERY_UNSURE_NATS}", VERY_UNSURE),
        "  ",
        ("given", GIVEN),
    )
