"""Supervised fine-tuning on demonstrations: the warm start before reinforcement learning."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from agentrl.trainers.batch import used_segments
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import gradient_step, schedule
from agentrl.trainers.objective import Metrics
from agentrl.trainers.optimizer import MasterAdamW
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
        settings: Optimizer and memory bound; epochs and mini-batches do not apply.
        steps: Length of the schedule.

    Yields:
        The loss of every step, in nats per token.
    """
    scorer = TokenScorer(model)
    optimizer = MasterAdamW([p for p in model.parameters() if p.requires_grad], settings)
    for step in range(steps):
        optimizer.learning_rate = settings.learning_rate * schedule(settings, step, steps)
        yield imitation_step(scorer, optimizer, next(batches), settings)["loss"]


def imitation_step(
    scorer: TokenScorer, optimizer: MasterAdamW, trees: Sequence[Tree], settings: OptimizerSettings
) -> dict[str, float]:
    """One optimizer step on -mean log p over the sampled tokens; one that trajectories share counts once.

    Args:
        scorer: Forward pass of the model.
        optimizer: Of its parameters, at the learning rate of this step.
        trees: With a sampled token each.
        settings: Their `max_tokens_per_micro_batch` bounds memory.

    Returns:
        "loss" in nats per token, "grad_norm" before clipping, "num_tokens".

    Raises:
        PolicyError: The gradient is not finite; the weights are unchanged.
    """
    total = sum(sum(segment.action_mask) for tree in trees for segment in used_segments(tree))

    def losses() -> Iterator[tuple[Tensor, Metrics]]:
        for part in scorer.split(trees, settings.max_tokens_per_micro_batch):
            logprobs = scorer.score([share_opening([trees[i] for i in part])]).logprobs
            yield -logprobs.sum() / total, {"num_tokens": torch.tensor(len(logprobs))}

    return gradient_step(scorer.model, optimizer, losses())


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
