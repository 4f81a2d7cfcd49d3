"""STaR: Self-Taught Reasoner (arXiv:2203.14465)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.imitation import SelfTaughtRecipe
from agentrl.trainers.recipe import recipe


@recipe
def star() -> SelfTaughtRecipe:
    """Play, keep what was right, play again with a hint what was wrong, fit the base model to both; repeat.

    One episode per task, 40 steps of 8 trajectories in the first update and a fifth more in every further one, as in
    the paper. An update is a whole iteration, so give it many tasks (`rollout.tasks_per_update`; the paper's
    iterations see the whole data set) and a run few updates. The paper rationalises without tools; here the second
    attempt calls them as the first does, and the environment never learns that there was a hint.
    """
    return SelfTaughtRecipe(
        name="star",
        paper="2203.14465",
        idea="imitate own successes, some of them reached with a hint, always from the base model",
        sampling=GroupPlan(size=1),
        hint="Hint: the answer is {answer}.",
        max_per_task=4,
        steps=40,
        growth=1.2,
        batch=8,
    )
