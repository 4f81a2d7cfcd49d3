"""Supervised fine-tuning on demonstrations: the warm start before reinforcement learning."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

import torch

from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import schedule
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Segment, Tree


def fine_tune(
    model: torch.nn.Module,
    batches: Iterator[Sequence[Tree]],
    settings: OptimizerSettings,
    *,
    steps: int,
) -> Iterator[float]:
    """Minimises -mean log p over the demonstrated tokens: tool results and prompts are read, not learned.

    Args:
        model: Trained in place.
        batches: Demonstrations, one batch per step.
        settings: Optimizer; epochs and mini-batches do not apply.
        steps: Length of the schedule.

    Yields:
        The loss of every step, in nats per token.
    """
    scorer = TokenScorer(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(settings, step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss = -scorer.score([share_opening(next(batches))]).logprobs.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        yield float(loss.detach())


def share_opening(trees: Sequence[Tree]) -> Tree:
    """One tree of many, whose root is what all of them begin with: system prompt and tools are computed once.

    Args:
        trees: At least one; the first segment of each is its prompt.

    Returns:
        A tree with the same paths, token by token, and the leaves in the same order.
    """
    prompts = [tree.segments[0].token_ids for tree in trees]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    shared = min(shared, min(map(len, prompts)) - 1)  # every prompt keeps a token of its own
    joined = Tree(task_id="joined")
    joined.add(None, "prompt", 0, prompts[0][:shared])
    for tree in trees:
        offset = len(joined.segments)
        for segment in tree.segments:
            parent = 0 if segment.parent is None else segment.parent + offset
            own = segment if segment.parent is not None else _without_first(segment, shared)
            joined.segments.append(replace(own, id=segment.id + offset, parent=parent))
        joined.leaves.extend(replace(leaf, segment=leaf.segment + offset, fork_of=None) for leaf in tree.leaves)
    return joined


def _without_first(segment: Segment, count: int) -> Segment:
    rest = len(segment.token_ids) - count
    return replace(segment, token_ids=segment.token_ids[count:], action_mask=[0] * rest, logprobs=[], entropies=[])
