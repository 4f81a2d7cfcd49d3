"""SFT: supervised fine-tuning on demonstrations."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.imitation import ImitationRecipe
from agentrl.trainers.recipe import recipe


@recipe
def sft() -> ImitationRecipe:
    """Maximises the likelihood of what was done, action tokens only, a mean over the tokens of a mini-batch.

    Demonstrations come from a file (`data.path`), or without one from the environment's oracle. The paper is
    InstructGPT's, whose first step this is.
    """
    return ImitationRecipe(
        name="sft",
        paper="2203.02155",
        idea="imitate demonstrations, the environment's own or those of a file",
        sampling=GroupPlan(size=1),
    )
