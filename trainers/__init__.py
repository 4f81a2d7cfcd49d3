"""Recipes, losses and training loops.

Public names load on first use: `import agentrl.trainers` itself needs no torch. The decorator that enters a recipe
is `agentrl.trainers.recipe.recipe`; the recipes to start from are in `agentrl.trainers.recipes`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.trainers.advantages import GroupCentered as GroupCentered
    from agentrl.trainers.advantages import GroupNormalized as GroupNormalized
    from agentrl.trainers.advantages import SharedMean as SharedMean
    from agentrl.trainers.aggregation import Aggregation as Aggregation
    from agentrl.trainers.aggregation import Constant as Constant
    from agentrl.trainers.aggregation import SeqMeanTokenMean as SeqMeanTokenMean
    from agentrl.trainers.aggregation import SeqMeanTokenSum as SeqMeanTokenSum
    from agentrl.trainers.aggregation import TokenMean as TokenMean
    from agentrl.trainers.batch import PathBatch as PathBatch
    from agentrl.trainers.batch import lay_out_paths as lay_out_paths
    from agentrl.trainers.feedback import Advantage as Advantage
    from agentrl.trainers.feedback import Feedback as Feedback
    from agentrl.trainers.forward import TokenScorer as TokenScorer
    from agentrl.trainers.forward import TokenScores as TokenScores
    from agentrl.trainers.kl import KLEstimator as KLEstimator
    from agentrl.trainers.kl import KLPenalty as KLPenalty
    from agentrl.trainers.kl import KLPlace as KLPlace
    from agentrl.trainers.objective import average_metrics as average_metrics
    from agentrl.trainers.objective import compute_advantages as compute_advantages
    from agentrl.trainers.objective import compute_weights as compute_weights
    from agentrl.trainers.objective import policy_loss as policy_loss
    from agentrl.trainers.ratios import RatioLevel as RatioLevel
    from agentrl.trainers.ratios import TokenRatio as TokenRatio
    from agentrl.trainers.recipe import Recipe as Recipe
    from agentrl.trainers.recipes import RECIPES as RECIPES
    from agentrl.trainers.settings import TrainSettings as TrainSettings
    from agentrl.trainers.shaping import DropConstantRewards as DropConstantRewards
    from agentrl.trainers.shaping import GroupFilter as GroupFilter
    from agentrl.trainers.shaping import OverlongPenalty as OverlongPenalty
    from agentrl.trainers.shaping import RewardShaping as RewardShaping
    from agentrl.trainers.supervised import fine_tune as fine_tune
    from agentrl.trainers.surrogates import Clip as Clip
    from agentrl.trainers.surrogates import Surrogate as Surrogate
    from agentrl.trainers.surrogates import SurrogateInputs as SurrogateInputs
    from agentrl.trainers.surrogates import TokenLoss as TokenLoss
    from agentrl.trainers.training import TrainResult as TrainResult
    from agentrl.trainers.training import train as train

_HOMES = {
    "Advantage": "feedback",
    "Feedback": "feedback",
    "GroupCentered": "advantages",
    "GroupNormalized": "advantages",
    "SharedMean": "advantages",
    "Aggregation": "aggregation",
    "Constant": "aggregation",
    "SeqMeanTokenMean": "aggregation",
    "SeqMeanTokenSum": "aggregation",
    "TokenMean": "aggregation",
    "PathBatch": "batch",
    "lay_out_paths": "batch",
    "TokenScorer": "forward",
    "TokenScores": "forward",
    "KLEstimator": "kl",
    "KLPenalty": "kl",
    "KLPlace": "kl",
    "average_metrics": "objective",
    "compute_advantages": "objective",
    "compute_weights": "objective",
    "policy_loss": "objective",
    "RatioLevel": "ratios",
    "TokenRatio": "ratios",
    "Recipe": "recipe",
    "RECIPES": "recipes",
    "DropConstantRewards": "shaping",
    "GroupFilter": "shaping",
    "OverlongPenalty": "shaping",
    "RewardShaping": "shaping",
    "Clip": "surrogates",
    "Surrogate": "surrogates",
    "SurrogateInputs": "surrogates",
    "TokenLoss": "surrogates",
    "TrainResult": "training",
    "TrainSettings": "settings",
    "fine_tune": "supervised",
    "train": "training",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentrl.trainers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agentrl.trainers.{_HOMES[name]}"), name)
