"""Recipes, losses and training loops.

Public names load on first use: `import agentrl.trainers` itself needs no torch. The decorator that enters a recipe
is `agentrl.trainers.recipe.recipe`; the recipes to start from are in `agentrl.trainers.recipes`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.trainers.adaptive_clip import AdaptiveClip as AdaptiveClip
    from agentrl.trainers.adaptive_clip import Contribution as Contribution
    from agentrl.trainers.advantages import GroupCentered as GroupCentered
    from agentrl.trainers.advantages import GroupNormalized as GroupNormalized
    from agentrl.trainers.advantages import SharedMean as SharedMean
    from agentrl.trainers.aggregation import Aggregation as Aggregation
    from agentrl.trainers.aggregation import Constant as Constant
    from agentrl.trainers.aggregation import SeqMeanTokenMean as SeqMeanTokenMean
    from agentrl.trainers.aggregation import SeqMeanTokenSum as SeqMeanTokenSum
    from agentrl.trainers.aggregation import TokenMean as TokenMean
    from agentrl.trainers.algorithm import Algorithm as Algorithm
    from agentrl.trainers.baselines import BatchCentered as BatchCentered
    from agentrl.trainers.baselines import GreedyBaseline as GreedyBaseline
    from agentrl.trainers.baselines import LeaveOneOut as LeaveOneOut
    from agentrl.trainers.baselines import LengthWeighted as LengthWeighted
    from agentrl.trainers.baselines import WhitenedGroupCentered as WhitenedGroupCentered
    from agentrl.trainers.baselines import WhitenedReturns as WhitenedReturns
    from agentrl.trainers.batch import PathBatch as PathBatch
    from agentrl.trainers.batch import lay_out_paths as lay_out_paths
    from agentrl.trainers.covariance import ClipCov as ClipCov
    from agentrl.trainers.covariance import KLCov as KLCov
    from agentrl.trainers.entropy_advantages import EntropyAware as EntropyAware
    from agentrl.trainers.entropy_advantages import EntropyShapedSequences as EntropyShapedSequences
    from agentrl.trainers.entropy_advantages import EntropyShapedTokens as EntropyShapedTokens
    from agentrl.trainers.feedback import Advantage as Advantage
    from agentrl.trainers.feedback import AdvantageWrapper as AdvantageWrapper
    from agentrl.trainers.feedback import Feedback as Feedback
    from agentrl.trainers.feedback import GroupRelative as GroupRelative
    from agentrl.trainers.forward import TokenScorer as TokenScorer
    from agentrl.trainers.forward import TokenScores as TokenScores
    from agentrl.trainers.gae import GAE as GAE
    from agentrl.trainers.imitation import ImitationRecipe as ImitationRecipe
    from agentrl.trainers.imitation import SelfTaughtRecipe as SelfTaughtRecipe
    from agentrl.trainers.kl import KLEstimator as KLEstimator
    from agentrl.trainers.kl import KLPenalty as KLPenalty
    from agentrl.trainers.kl import KLPlace as KLPlace
    from agentrl.trainers.levels import CorrectionAction as CorrectionAction
    from agentrl.trainers.levels import CorrectionLevel as CorrectionLevel
    from agentrl.trainers.multi_reward import NormalizeThenSum as NormalizeThenSum
    from agentrl.trainers.multi_reward import PartWeights as PartWeights
    from agentrl.trainers.objective import average_metrics as average_metrics
    from agentrl.trainers.objective import compute_advantages as compute_advantages
    from agentrl.trainers.objective import compute_weights as compute_weights
    from agentrl.trainers.objective import policy_loss as policy_loss
    from agentrl.trainers.preference.builders import AllPairs as AllPairs
    from agentrl.trainers.preference.builders import BestAgainstWorst as BestAgainstWorst
    from agentrl.trainers.preference.builders import ByReward as ByReward
    from agentrl.trainers.preference.builders import BySuccess as BySuccess
    from agentrl.trainers.preference.builders import PreferenceBuilder as PreferenceBuilder
    from agentrl.trainers.preference.builders import Preferences as Preferences
    from agentrl.trainers.preference.builders import Siblings as Siblings
    from agentrl.trainers.preference.recipe import PreferenceRecipe as PreferenceRecipe
    from agentrl.trainers.ratios import MeanRatio as MeanRatio
    from agentrl.trainers.ratios import ProductRatio as ProductRatio
    from agentrl.trainers.ratios import RatioLevel as RatioLevel
    from agentrl.trainers.ratios import SequenceRatio as SequenceRatio
    from agentrl.trainers.ratios import SequenceTokenRatio as SequenceTokenRatio
    from agentrl.trainers.ratios import TokenRatio as TokenRatio
    from agentrl.trainers.recipe import Recipe as Recipe
    from agentrl.trainers.recipes import RECIPES as RECIPES
    from agentrl.trainers.reward_models.core import Completer as Completer
    from agentrl.trainers.reward_models.core import RewardModel as RewardModel
    from agentrl.trainers.reward_models.core import RewardSource as RewardSource
    from agentrl.trainers.reward_models.discriminator import Discriminator as Discriminator
    from agentrl.trainers.reward_models.step_model import StepModel as StepModel
    from agentrl.trainers.reward_models.step_values import BranchValues as BranchValues
    from agentrl.trainers.reward_models.step_values import MonteCarloValues as MonteCarloValues
    from agentrl.trainers.reward_models.step_values import StepValues as StepValues
    from agentrl.trainers.settings import TrainSettings as TrainSettings
    from agentrl.trainers.shaping import DropConstantRewards as DropConstantRewards
    from agentrl.trainers.shaping import GroupFilter as GroupFilter
    from agentrl.trainers.shaping import OverlongPenalty as OverlongPenalty
    from agentrl.trainers.shaping import RewardShaping as RewardShaping
    from agentrl.trainers.soft_surrogates import DetachedRatio as DetachedRatio
    from agentrl.trainers.soft_surrogates import GeometricClip as GeometricClip
    from agentrl.trainers.soft_surrogates import GradientPreservingClip as GradientPreservingClip
    from agentrl.trainers.soft_surrogates import PolicyGradient as PolicyGradient
    from agentrl.trainers.soft_surrogates import SoftGate as SoftGate
    from agentrl.trainers.step_advantages import FirstTurn as FirstTurn
    from agentrl.trainers.step_advantages import ProcessNormalized as ProcessNormalized
    from agentrl.trainers.step_advantages import StateGroups as StateGroups
    from agentrl.trainers.step_advantages import TreeNormalized as TreeNormalized
    from agentrl.trainers.supervised import fine_tune as fine_tune
    from agentrl.trainers.surrogates import Clip as Clip
    from agentrl.trainers.surrogates import Surrogate as Surrogate
    from agentrl.trainers.surrogates import SurrogateInputs as SurrogateInputs
    from agentrl.trainers.surrogates import TokenLoss as TokenLoss
    from agentrl.trainers.token_weights import SamplerCorrection as SamplerCorrection
    from agentrl.trainers.token_weights import TokenWeight as TokenWeight
    from agentrl.trainers.token_weights import TopEntropy as TopEntropy
    from agentrl.trainers.training import TrainResult as TrainResult
    from agentrl.trainers.training import train as train
    from agentrl.trainers.trust_region import TrustRegion as TrustRegion
    from agentrl.trainers.value_loss import ValueLoss as ValueLoss

_HOMES = {
    "AdaptiveClip": "adaptive_clip",
    "Advantage": "feedback",
    "AdvantageWrapper": "feedback",
    "Aggregation": "aggregation",
    "Algorithm": "algorithm",
    "AllPairs": "preference.builders",
    "BatchCentered": "baselines",
    "BestAgainstWorst": "preference.builders",
    "BranchValues": "reward_models.step_values",
    "ByReward": "preference.builders",
    "BySuccess": "preference.builders",
    "Clip": "surrogates",
    "ClipCov": "covariance",
    "Completer": "reward_models.core",
    "Constant": "aggregation",
    "Contribution": "adaptive_clip",
    "CorrectionAction": "levels",
    "CorrectionLevel": "levels",
    "DetachedRatio": "soft_surrogates",
    "Discriminator": "reward_models.discriminator",
    "DropConstantRewards": "shaping",
    "EntropyAware": "entropy_advantages",
    "EntropyShapedSequences": "entropy_advantages",
    "EntropyShapedTokens": "entropy_advantages",
    "Feedback": "feedback",
    "FirstTurn": "step_advantages",
    "GAE": "gae",
    "GeometricClip": "soft_surrogates",
    "GradientPreservingClip": "soft_surrogates",
    "GreedyBaseline": "baselines",
    "GroupCentered": "advantages",
    "GroupFilter": "shaping",
    "GroupNormalized": "advantages",
    "GroupRelative": "feedback",
    "ImitationRecipe": "imitation",
    "KLCov": "covariance",
    "KLEstimator": "kl",
    "KLPenalty": "kl",
    "KLPlace": "kl",
    "LeaveOneOut": "baselines",
    "LengthWeighted": "baselines",
    "MeanRatio": "ratios",
    "MonteCarloValues": "reward_models.step_values",
    "NormalizeThenSum": "multi_reward",
    "OverlongPenalty": "shaping",
    "PartWeights": "multi_reward",
    "PathBatch": "batch",
    "PolicyGradient": "soft_surrogates",
    "PreferenceBuilder": "preference.builders",
    "PreferenceRecipe": "preference.recipe",
    "Preferences": "preference.builders",
    "ProcessNormalized": "step_advantages",
    "ProductRatio": "ratios",
    "RECIPES": "recipes",
    "RatioLevel": "ratios",
    "Recipe": "recipe",
    "RewardModel": "reward_models.core",
    "RewardShaping": "shaping",
    "RewardSource": "reward_models.core",
    "SamplerCorrection": "token_weights",
    "SelfTaughtRecipe": "imitation",
    "SeqMeanTokenMean": "aggregation",
    "SeqMeanTokenSum": "aggregation",
    "SequenceRatio": "ratios",
    "SequenceTokenRatio": "ratios",
    "SharedMean": "advantages",
    "Siblings": "preference.builders",
    "SoftGate": "soft_surrogates",
    "StateGroups": "step_advantages",
    "StepModel": "reward_models.step_model",
    "StepValues": "reward_models.step_values",
    "Surrogate": "surrogates",
    "SurrogateInputs": "surrogates",
    "TokenLoss": "surrogates",
    "TokenMean": "aggregation",
    "TokenRatio": "ratios",
    "TokenScorer": "forward",
    "TokenScores": "forward",
    "TokenWeight": "token_weights",
    "TopEntropy": "token_weights",
    "TrainResult": "training",
    "TrainSettings": "settings",
    "TreeNormalized": "step_advantages",
    "TrustRegion": "trust_region",
    "ValueLoss": "value_loss",
    "WhitenedGroupCentered": "baselines",
    "WhitenedReturns": "baselines",
    "average_metrics": "objective",
    "compute_advantages": "objective",
    "compute_weights": "objective",
    "fine_tune": "supervised",
    "lay_out_paths": "batch",
    "policy_loss": "objective",
    "train": "training",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentrl.trainers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agentrl.trainers.{_HOMES[name]}"), name)
