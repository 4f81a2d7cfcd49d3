"""The critic: learns beside the policy what each state is worth, with an optimizer of its own."""

from typing import Any

import torch
from torch import Tensor

from agentrl.trainers.learner import gradient_step
from agentrl.trainers.masking import masked_mean, zero_outside
from agentrl.trainers.mini_batches import Part
from agentrl.trainers.objective import Metrics, loss_mask
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import CriticSettings, OptimizerSettings
from agentrl.trainers.value_models import ValueNetwork
from agentrl.trajectory import Tree


class Critic:
    """A value network and how it learns.

    Args:
        network: What computes values.
        settings: Learning rate and warm-up.
        optimizer: Of the policy: betas, weight decay and the bound on the gradient norm are shared.
    """

    def __init__(self, network: ValueNetwork, settings: CriticSettings, optimizer: OptimizerSettings) -> None:
        self._network = network
        self._settings = settings
        self._optimizer = MasterAdamW(list(network.trained.parameters()), optimizer)

    @property
    def warmup_updates(self) -> int:
        """Updates at the start in which it learns and the policy does not."""
        return self._settings.warmup_updates

    def values(self, trees: list[Tree]) -> Tensor:
        """[U]: what it expects before each unique sampled token."""
        return self._network(trees)

    def scale_learning_rate(self, factor: float) -> None:
        """Places the following steps in the policy's schedule."""
        self._optimizer.learning_rate = self._settings.rate * factor

    def step(self, parts: list[Part], recipe: Recipe) -> dict[str, float]:
        """One optimizer step on a mini-batch.

        Args:
            parts: Its micro-batches.
            recipe: Has the loss, and says which tokens count.

        Returns:
            "value_loss", "value_grad_norm" and the metrics of the recipe's value loss.

        Raises:
            PolicyError: The gradient is not finite; the critic is unchanged.
        """
        losses = (self._loss(part, recipe) for part in parts)
        metrics = gradient_step(self._network.trained, self._optimizer, losses, rate="critic.learning_rate")
        del metrics["num_tokens"]  # the policy's step counts them
        return {"value_loss": metrics.pop("loss"), "value_grad_norm": metrics.pop("grad_norm"), **metrics}

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's state."""
        return {"network": self._network.trained.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._network.trained.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _loss(self, part: Part, recipe: Recipe) -> tuple[Tensor, Metrics]:
        columns = part.columns
        assert recipe.value_loss is not None, "a recipe with a critic has one"
        assert columns.values is not None, "computed before the update"
        assert columns.value_targets is not None, "computed before the update"
        mask = loss_mask(recipe, part.batch)
        values = self._network(part.trees)[part.batch.token_index]
        losses, metrics = recipe.value_loss(values, columns.values, columns.value_targets, mask)
        means = {name: masked_mean(metric, mask) for name, metric in metrics.items()}
        return zero_outside(part.weights * losses, mask).sum(), {**means, "num_tokens": torch.count_nonzero(mask)}
