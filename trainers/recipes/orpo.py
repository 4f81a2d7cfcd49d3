"""ORPO: Odds Ratio Preference Optimization (arXiv:2403.07691)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.preference.builders import BestAgainstWorst
from agentrl.trainers.preference.parts import ORPO
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import recipe


@recipe
def orpo() -> PreferenceRecipe:
    """Imitates the better trajectory and raises its odds over those of the worse one; no reference model.

    Probabilities are geometric means per token. The imitation covers action tokens only; the authors' code and TRL
    also take in the prompt. Lambda is 0.1 in the paper for Mistral, 0.2 for Llama 2, 0.25 for Phi-2.
    """
    return PreferenceRecipe(
        name="orpo",
        paper="2403.07691",
        idea="imitate the better trajectory and raise its odds, without a reference model",
        sampling=GroupPlan(size=8),
        builder=BestAgainstWorst(),
        loss=ORPO(weight=0.1),
    )
