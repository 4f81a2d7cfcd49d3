"""What every recipe that comes with agentrl must consist of: the rows of the specification, number for number.

Nothing here starts from another row or leaves a number to a default, so that a default that moves is noticed.
"""

import math

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers import (
    GAE,
    AdaptiveClip,
    Algorithm,
    BatchCentered,
    BestAgainstWorst,
    BranchValues,
    BySuccess,
    Clip,
    ClipCov,
    Constant,
    Contribution,
    DetachedRatio,
    Discriminator,
    DropConstantRewards,
    EntropyAware,
    EntropyShapedSequences,
    EntropyShapedTokens,
    FirstTurn,
    GeometricClip,
    GradientPreservingClip,
    GreedyBaseline,
    GroupCentered,
    GroupNormalized,
    ImitationRecipe,
    KLCov,
    KLEstimator,
    KLPenalty,
    KLPlace,
    LeaveOneOut,
    LengthWeighted,
    MeanRatio,
    MonteCarloValues,
    OverlongPenalty,
    PolicyGradient,
    PreferenceBuilder,
    PreferenceRecipe,
    ProcessNormalized,
    ProductRatio,
    Recipe,
    SelfTaughtRecipe,
    SeqMeanTokenMean,
    SeqMeanTokenSum,
    SequenceRatio,
    SequenceTokenRatio,
    SharedMean,
    Siblings,
    SoftGate,
    StateGroups,
    StepModel,
    TokenMean,
    TokenRatio,
    TreeNormalized,
    TrustRegion,
    ValueLoss,
    WhitenedGroupCentered,
    WhitenedReturns,
)
from agentrl.trainers.preference.parts import DPO, IPO, KTO, ORPO, PreferenceLoss

PAPERS = {
    "reinforce": "2402.14740",
    "trpo": "1502.05477",
    "ppo": "1707.06347",
    "gapo": "2503.20194",
    "remax": "2310.10505",
    "rloo": "2402.14740",
    "rloo_trl": "2402.14740",
    "reinforce_pp": "2501.03262",
    "reinforce_pp_baseline": "2501.03262",
    "grpo": "2402.03300",
    "grpo_trl": "2402.03300",
    "grpo_verl": "2402.03300",
    "dr_grpo": "2503.20783",
    "dapo": "2503.14476",
    "gspo": "2507.18071",
    "gspo_token": "2507.18071",
    "sapo": "2511.20347",
    "gtpo": "2508.04349",
    "grpo_s": "2508.04349",
    "bapo": "2510.18927",
    "arpo": "2507.19849",
    "arpo_hard": "2507.19849",
    "aepo": "2510.14545",
    "gigpo": "2505.10978",
    "tree_grpo": "2509.21240",
    "mt_grpo": "2505.11821",
    "prm": "2312.08935",
    "prm_monte_carlo": "2312.08935",
    "prm_model": "2312.08935",
    "cispo": "2506.13585",
    "gmpo": "2507.20673",
    "opo": "2505.23585",
    "clip_cov": "2505.22617",
    "kl_cov": "2505.22617",
    "dpo": "2305.18290",
    "dpo_siblings": "2305.18290",
    "ipo": "2310.12036",
    "ipo_token_mean": "2310.12036",
    "kto": "2402.01306",
    "orpo": "2403.07691",
    "sft": "2203.02155",
    "star": "2203.14465",
}

# Sampling -------------------------------------------------------------------------------------------------------------

ONE, TWO, FOUR, EIGHT, SIXTEEN = (GroupPlan(size=size) for size in (1, 2, 4, 8, 16))
ARPO_TREE = GroupPlan(
    size=16, initial=8, rule=BranchRule.PAPER, alpha=0.5, beta=0.2, tau=0.5, probe_tokens=20, max_branches=1
)
AEPO_TREE = GroupPlan(
    size=16,
    dynamic=True,
    rule=BranchRule.AEPO,
    alpha=0.5,
    beta=0.2,
    tau=0.5,
    probe_tokens=20,
    max_branches=1,
    branch_penalty=0.05,
)
SEARCH_TREES = GroupPlan(size=6, initial=2, rule=BranchRule.RANDOM_NODES, rounds=1)  # 2 trees * (1 + 1 round * 2 nodes)

# Parts that several rows share ----------------------------------------------------------------------------------------

ZSCORE = GroupNormalized(eps=1e-6, ddof=1)
RETURN_MINUS_VALUE = GAE(gamma=1.0, lam=1.0, whiten=True)
PPO_CLIP = Clip(low=0.2, high=0.2, dual=None)
DAPO_CLIP = Clip(low=0.2, high=0.28, dual=None)
GSPO_CLIP = Clip(low=3e-4, high=4e-4, dual=None)


def reward_k1(coef: float) -> KLPenalty:
    return KLPenalty(coef=coef, estimator=KLEstimator.K1, place=KLPlace.REWARD)


def loss_k3(coef: float) -> KLPenalty:
    return KLPenalty(coef=coef, estimator=KLEstimator.K3, place=KLPlace.LOSS)


DISCRIMINATOR = Discriminator(
    demonstrations=None,
    fit_every=1,
    warmup_steps=100,
    fit_steps=10,
    learning_rate=1e-3,
    label_smoothing=0.1,
    logit_clip=5.0,
    freeze_above=0.95,
    whiten=True,
    max_positives=512,
)
STEP_MODEL = StepModel(labels=BranchValues(), learning_rate=3e-3, warmup_steps=100, fit_steps=20)

# Sampling, advantage, ratio, surrogate, aggregation, KL, and whatever else is not left out.
ON_POLICY: dict[str, tuple[object, ...]] = {
    "reinforce": (FOUR, BatchCentered(), TokenRatio(), PolicyGradient(), SeqMeanTokenSum(), None),
    "trpo": (
        *(EIGHT, RETURN_MINUS_VALUE, TokenRatio(), Clip(low=math.inf, high=math.inf), TokenMean(), None),
        {
            "value_loss": ValueLoss(clip=None),
            "trust_region": TrustRegion(
                max_kl=0.01, cg_iterations=10, damping=0.1, backtracks=10, backtrack_factor=0.8
            ),
        },
    ),
    "ppo": (
        *(EIGHT, RETURN_MINUS_VALUE, TokenRatio(), PPO_CLIP, TokenMean(), reward_k1(0.001)),
        {"value_loss": ValueLoss(clip=0.5)},
    ),
    "gapo": (
        *(EIGHT, RETURN_MINUS_VALUE, TokenRatio(), PPO_CLIP, TokenMean(), reward_k1(0.001)),
        {"value_loss": ValueLoss(clip=0.5), "reward": DISCRIMINATOR},
    ),
    "remax": (ONE, GreedyBaseline(), TokenRatio(), PolicyGradient(), TokenMean(), reward_k1(0.01)),
    "rloo": (FOUR, LeaveOneOut(), TokenRatio(), PolicyGradient(), SeqMeanTokenSum(), reward_k1(0.05)),
    "rloo_trl": (TWO, LeaveOneOut(), ProductRatio(), PPO_CLIP, SeqMeanTokenMean(), reward_k1(0.05)),
    "reinforce_pp": (ONE, WhitenedReturns(gamma=1.0), TokenRatio(), PPO_CLIP, TokenMean(), reward_k1(0.01)),
    "reinforce_pp_baseline": (
        *(EIGHT, WhitenedGroupCentered(), TokenRatio(), PPO_CLIP, TokenMean()),
        KLPenalty(coef=0.01, estimator=KLEstimator.K2, place=KLPlace.LOSS),
    ),
    "grpo": (EIGHT, ZSCORE, TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), loss_k3(0.04)),
    "grpo_trl": (EIGHT, GroupNormalized(eps=1e-4, ddof=1), TokenRatio(), PPO_CLIP, TokenMean(), None),
    "grpo_verl": (EIGHT, ZSCORE, TokenRatio(), Clip(low=0.2, high=0.2, dual=3.0), TokenMean(), None),
    "dr_grpo": (EIGHT, GroupCentered(), TokenRatio(), PPO_CLIP, Constant(3000), None),
    "dapo": (
        *(SIXTEEN, ZSCORE, TokenRatio(), DAPO_CLIP, TokenMean(), None),
        {
            "shaping": (OverlongPenalty(max_length=20480, cache=4096),),
            "group_filter": DropConstantRewards(max_rounds=10),
        },
    ),
    "gspo": (SIXTEEN, ZSCORE, SequenceRatio(), GSPO_CLIP, SeqMeanTokenMean(), None),
    "gspo_token": (SIXTEEN, ZSCORE, SequenceTokenRatio(), GSPO_CLIP, SeqMeanTokenMean(), None),
    "sapo": (EIGHT, ZSCORE, TokenRatio(), SoftGate(tau_pos=1.0, tau_neg=1.05), SeqMeanTokenMean(), None),
    "gtpo": (
        *(SIXTEEN, EntropyShapedTokens(base=1.0, bonus=0.1, separate=False), TokenRatio(), DAPO_CLIP, TokenMean()),
        None,
    ),
    "grpo_s": (
        *(SIXTEEN, EntropyShapedSequences(base=1.0, bonus=0.1, separate=False), MeanRatio(), DAPO_CLIP),
        *(SeqMeanTokenMean(), None),
    ),
    "bapo": (
        *(EIGHT, ZSCORE, TokenRatio()),
        AdaptiveClip(
            share=0.4,
            low=(0.6, 0.9),
            high=(1.2, 3.0),
            low_step=0.02,
            high_step=0.05,
            contribution=Contribution.GRADIENT,
        ),
        *(TokenMean(), None),
    ),
    "arpo": (ARPO_TREE, ZSCORE, TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), None),
    "arpo_hard": (ARPO_TREE, SharedMean(ZSCORE), TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), None),
    "aepo": (
        *(AEPO_TREE, EntropyAware(inner=ZSCORE, weight=0.2), TokenRatio()),
        *(GradientPreservingClip(low=0.2, high=0.2, dual=None), TokenMean(), None),
    ),
    "gigpo": (
        *(EIGHT, StateGroups(weight=1.0, gamma=0.95, scale=False, eps=1e-6), TokenRatio(), PPO_CLIP, TokenMean()),
        loss_k3(0.01),
    ),
    "tree_grpo": (
        *(SEARCH_TREES, TreeNormalized(inter=True, eps=1e-6), TokenRatio(), PPO_CLIP, TokenMean()),
        loss_k3(0.001),
    ),
    "mt_grpo": (EIGHT, FirstTurn(weight=1.0, eps=1e-6), TokenRatio(), PPO_CLIP, TokenMean(), loss_k3(0.04)),
    "prm": (
        *(ARPO_TREE, ProcessNormalized(eps=1e-6), TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), loss_k3(0.04)),
        {"reward": BranchValues()},
    ),
    "prm_monte_carlo": (
        *(EIGHT, ProcessNormalized(eps=1e-6), TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), loss_k3(0.04)),
        {"reward": MonteCarloValues(num_completions=8, hard=False)},
    ),
    "prm_model": (
        *(ARPO_TREE, ProcessNormalized(eps=1e-6), TokenRatio(), PPO_CLIP, SeqMeanTokenMean(), loss_k3(0.04)),
        {"reward": STEP_MODEL},
    ),
    "cispo": (EIGHT, ZSCORE, TokenRatio(), DetachedRatio(low=math.inf, high=4.0), TokenMean(), None),
    "gmpo": (EIGHT, ZSCORE, TokenRatio(), GeometricClip(width=0.4), SeqMeanTokenMean(), None),
    "opo": (EIGHT, LengthWeighted(), TokenRatio(), PPO_CLIP, TokenMean(), None),
    "clip_cov": (
        *(EIGHT, ZSCORE, TokenRatio(), ClipCov(clip=PPO_CLIP, fraction=2e-4, low=1.0, high=5.0), TokenMean()),
        None,
    ),
    "kl_cov": (EIGHT, ZSCORE, TokenRatio(), KLCov(fraction=2e-4, coef=0.1), TokenMean(), None),
}
PREFERENCE: dict[str, tuple[GroupPlan, PreferenceBuilder, PreferenceLoss]] = {
    "dpo": (EIGHT, BestAgainstWorst(margin=0.0), DPO(beta=0.1)),
    "dpo_siblings": (ARPO_TREE, Siblings(margin=0.0), DPO(beta=0.1)),
    "ipo": (EIGHT, BestAgainstWorst(margin=0.0), IPO(tau=0.1, token_mean=False)),
    "ipo_token_mean": (EIGHT, BestAgainstWorst(margin=0.0), IPO(tau=0.1, token_mean=True)),
    "kto": (EIGHT, BySuccess(), KTO(beta=0.1, weight_desirable=1.0, weight_undesirable=1.0)),
    "orpo": (EIGHT, BestAgainstWorst(margin=0.0), ORPO(weight=0.1)),
}


def on_policy(name: str) -> Recipe:
    """A row of `ON_POLICY` as a recipe without its idea."""
    sampling, advantage, ratio, surrogate, aggregation, kl, *others = ON_POLICY[name]
    parts = {"sampling": sampling, "advantage": advantage, "ratio": ratio, "surrogate": surrogate}
    more: dict[str, object] = {key: part for given in others for key, part in given.items()}  # type: ignore[attr-defined]
    return Recipe(name=name, paper=PAPERS[name], idea="", aggregation=aggregation, kl=kl, **parts, **more)  # type: ignore[arg-type]


def preference(name: str) -> PreferenceRecipe:
    """A row of `PREFERENCE` as a recipe without its idea."""
    sampling, builder, loss = PREFERENCE[name]
    return PreferenceRecipe(name=name, paper=PAPERS[name], idea="", sampling=sampling, builder=builder, loss=loss)


TABLE: dict[str, Algorithm] = {
    **{name: on_policy(name) for name in ON_POLICY},
    **{name: preference(name) for name in PREFERENCE},
    "sft": ImitationRecipe(name="sft", paper=PAPERS["sft"], idea="", sampling=ONE),
    "star": SelfTaughtRecipe(
        name="star",
        paper=PAPERS["star"],
        idea="",
        sampling=ONE,
        hint="Hint: the answer is {answer}.",
        max_per_task=4,
        steps=40,
        growth=1.2,
        max_steps=1000,
        batch=8,
    ),
}
REFERENCE, FORKS, REWARDS = "reference", "environment that forks", "reward model"
NEEDS: dict[str, set[str]] = {
    "trpo": {"critic"},
    "ppo": {"critic", REFERENCE},
    "gapo": {"critic", REFERENCE, REWARDS},
    "remax": {REFERENCE, "greedy episode"},
    "rloo": {REFERENCE},
    "rloo_trl": {REFERENCE},
    "reinforce_pp": {REFERENCE},
    "reinforce_pp_baseline": {REFERENCE},
    "grpo": {REFERENCE},
    "arpo": {FORKS},
    "arpo_hard": {FORKS},
    "aepo": {FORKS},
    "gigpo": {REFERENCE, "state keys"},
    "tree_grpo": {REFERENCE, FORKS},
    "mt_grpo": {REFERENCE, "turn rewards"},
    "prm": {REFERENCE, REWARDS, FORKS},
    "prm_monte_carlo": {REFERENCE, REWARDS, FORKS, "completions"},
    "prm_model": {REFERENCE, REWARDS, FORKS},
    "dpo": {REFERENCE, "pairs"},
    "dpo_siblings": {REFERENCE, "pairs", FORKS},
    "ipo": {REFERENCE, "pairs"},
    "ipo_token_mean": {REFERENCE, "pairs"},
    "kto": {REFERENCE, "labels"},
    "orpo": {"pairs"},
    "sft": {"demonstrations"},
    "star": {"answers", "extra samples"},
}
"""Beside the policy and its episodes; nothing for those that are not here."""
