"""Completions after the prompts of other tasks: what KTO measures the distance to the reference with."""

from collections.abc import Sequence
from dataclasses import replace

from agentrl.trajectory import Segment, Tree


def mismatched(trees: Sequence[Tree], max_tokens: int) -> list[Tree]:
    """Every task's prompt, followed by the trajectories of the next task that has another prompt.

    TRL rotates single completions by one within a batch; here whole groups are, so that what trajectories share stays
    shared, and a completion never meets the prompt it was made for.

    Args:
        trees: The groups of a mini-batch, each with its prompt as the root.
        max_tokens: Longer trajectories, which the model could not have had, are left out.

    Returns:
        At most one tree per group, with at least one leaf; none if all prompts are the same.
    """
    found: list[Tree] = []
    for i, tree in enumerate(trees):
        prompt = tree.segments[0].token_ids
        others = (trees[(i + step) % len(trees)] for step in range(1, len(trees)))
        donor = next((other for other in others if other.segments[0].token_ids != prompt), None)
        if donor is None:
            return []
        root = Segment(0, None, "prompt", 0, prompt, [0] * len(prompt))
        grafted = replace(donor, task_id=tree.task_id, segments=[root, *donor.segments[1:]])
        fitting = [leaf for leaf in grafted.leaves if len(grafted.token_ids(leaf.segment)) <= max_tokens]
        if fitting:
            found.append(replace(grafted, leaves=fitting))
    return found
