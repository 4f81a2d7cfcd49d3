"""The configuration of a training run: one YAML file, `key.sub=value` overrides, every default a vetted one."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from agentrl.config import Config
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import RolloutLimits
from agentrl.rollout.plan import BranchRule
from agentrl.trainers.levels import CorrectionAction, CorrectionLevel


class EnvSettings(Config):
    """Which environment the agent is trained and evaluated in."""

    id: str
    """As `agentrl envs` lists them, or "module:Name-v0" for one of your own."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to the environment, besides `split`."""


class LoraSettings(Config):
    """Training a low-rank adapter instead of all weights (needs the extra "peft")."""

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    targets: str | list[str] = "all-linear"


class ModelSettings(Config):
    """Which model is trained, and how it is held."""

    name: str = "quickstart"
    """"quickstart" (the embedded policy), a folder, or a hub id."""
    device: str | None = None
    """None: CUDA where there is one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """None: bfloat16 on CUDA, float32 elsewhere."""
    chat_template: Path | None = None
    """A Jinja file instead of the tokenizer's own template."""
    gradient_checkpointing: bool = False
    """Compute activations twice to keep fewer of them."""
    lora: LoraSettings | None = None


class PolicySettings(Config):
    """What samples the episodes: the trained network itself, or vLLM beside it."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """"transformers" needs nothing else; "vllm" is faster on GPUs and with large models (needs the extra "vllm")."""
    servers: list[str] = Field(default_factory=list)
    """URLs of running `agentrl serve-policy`; none: vllm runs on this machine, started and ended with the run."""
    shared_folder: Path | None = None
    """Where new weights are left for servers on other machines, which see it by the same path; None: this machine's
    shared memory."""
    max_staleness: NonNegativeInt = 0
    """Updates by which the weights that sample may be behind those that are trained. 0: strictly on-policy; more lets
    sampling and training overlap."""
    entropy_top: PositiveInt = Field(default=20, le=63)
    """Entropy is estimated from so many of the most probable tokens (vllm; "transformers" sees all of them). Servers
    give at most 63."""
    gpu_memory: PositiveFloat = Field(default=0.4, le=1.0)
    """Share of the GPU's memory for an engine that is started by the run."""
    sleep: bool = False
    """Have that engine give its memory back during updates, so that both fit on one GPU."""


class RolloutSettings(Config):
    """How episodes are sampled for training."""

    tasks_per_update: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: PositiveFloat = 1.0
    top_k: NonNegativeInt = 0
    stop_at_tool_call: bool = True
    """End a turn at its first tool call, so that the model cannot invent the result."""
    max_turn_tokens: PositiveInt = 512
    max_episode_tokens: PositiveInt = 4096
    max_concurrent_episodes: PositiveInt = 256
    lockstep: bool = False

    @property
    def sampling(self) -> Sampling:
        """Temperature and truncation for the engine."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    @property
    def limits(self) -> RolloutLimits:
        """Bounds for the collector."""
        return RolloutLimits(
            max_turn_tokens=self.max_turn_tokens,
            max_episode_tokens=self.max_episode_tokens,
            max_concurrent_episodes=self.max_concurrent_episodes,
            lockstep=self.lockstep,
        )


class DataSettings(Config):
    """Recorded examples to learn from instead of episodes, for recipes that can (see `trainers/examples.py`)."""

    path: Path
    """`.jsonl`, `.json`, `.parquet`, or a folder written by `datasets.save_to_disk`."""
    split: str = "train"
    """Which one, where the data has splits of its own."""


class GroupSettings(Config):
    """Overrides of the recipe's sampling plan; None keeps the recipe's value (see `rollout.plan.GroupPlan`)."""

    size: PositiveInt | None = None
    initial: PositiveInt | None = None
    rule: BranchRule | None = None
    alpha: float | None = None
    beta: float | None = None
    tau: float | None = None
    probe_tokens: PositiveInt | None = None
    max_branches: PositiveInt | None = None
    branch_penalty: NonNegativeFloat | None = None
    dynamic: bool | None = None
    rounds: PositiveInt | None = None


class RewardSettings(Config):
    """What is made of rewards that come in named parts, of environments whose reward function returns a mapping."""

    combine: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """"sum_then_normalize": the return is the weighted sum of the parts, and the recipe sees nothing else.
    "normalize_then_sum": every part is compared within the group by itself (GDPO, arXiv:2601.05242); only for recipes
    whose advantage is GRPO's."""
    weights: dict[str, float] = Field(default_factory=dict)
    """By name of the part; others have the weight 1."""


class OptimizerSettings(Config):
    """AdamW, its schedule, and how a batch of episodes is cut into optimizer steps."""

    learning_rate: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    warmup_updates: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    epochs: PositiveInt = 1
    """Passes over the episodes of an update."""
    mini_batches: PositiveInt = 1
    """Optimizer steps per pass; groups stay whole."""
    max_tokens_per_micro_batch: PositiveInt = 16_384
    """Unique tokens of one forward and backward pass; bounds memory, never changes the gradient."""


class CriticSettings(Config):
    """The value model of recipes that need one; the rest of its optimizer is the policy's."""

    kind: Literal["model", "head"] = "model"
    """"model": a second model of the policy's size; "head": a small network on the policy's own hidden states."""
    learning_rate: PositiveFloat | None = None
    """None: 1e-5 for a model (verl's), 1e-3 for a head, which has everything still to learn."""
    warmup_updates: NonNegativeInt = 0
    """Updates at the start in which the critic learns and the policy does not."""

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or {"model": 1e-5, "head": 1e-3}[self.kind]


class CorrectionSettings(Config):
    """Importance weights from the sampling engine to the trainer's network (see `token_weights.SamplerCorrection`)."""

    level: CorrectionLevel | Literal["off"] = CorrectionLevel.TOKEN
    action: CorrectionAction = CorrectionAction.TRUNCATE
    low: NonNegativeFloat = 0.0
    high: PositiveFloat = 2.0


class ReplaySettings(Config):
    """Training again on the policy's own earlier episodes."""

    groups: PositiveInt = 4
    """Earlier groups added to every update."""
    max_age: PositiveInt = 4
    """Updates after which a group is forgotten."""


class ExtraSettings(Config):
    """What can be added to any recipe it fits."""

    correction: CorrectionSettings | None = None
    """None: on (with these defaults) if another engine samples than is trained (policy.engine=vllm), otherwise off, as
    sampler and trainer are the same network. Costs one more forward pass."""
    replay: ReplaySettings | None = None
    top_entropy: PositiveFloat | None = None
    """Share of tokens with the highest entropy that keep their loss (arXiv:2506.01939: 0.2)."""
    two_sided_clip: PositiveFloat | None = None
    """Largest ratio that a negative advantage is multiplied by (arXiv:2505.07291); TRL's delta, verl's dual clip."""


class EvaluationSettings(Config):
    """Held-out evaluation before, during and after training."""

    tasks: PositiveInt = 200
    every: NonNegativeInt = 0
    """Updates between evaluations in training; 0: only before and after."""
    greedy: bool = True
    """Also report greedy decoding, before and after."""


class TrainSettings(Config):
    """A training run.

    Example:
        TrainSettings(env=EnvSettings(id="agentrl/Arithmetic-v0"), recipe="arpo", updates=100)
    """

    env: EnvSettings
    recipe: str = "arpo"
    """As `agentrl algorithms` lists them, or "module:name" for one of your own."""
    updates: PositiveInt = 100
    seed: int = 0
    model: ModelSettings = ModelSettings()
    policy: PolicySettings = PolicySettings()
    data: DataSettings | None = None
    """None: the policy plays, or the environment's oracle."""
    rollout: RolloutSettings = RolloutSettings()
    group: GroupSettings = GroupSettings()
    rewards: RewardSettings = RewardSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    critic: CriticSettings = CriticSettings()
    extras: ExtraSettings = ExtraSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint_every: NonNegativeInt = 20
    """Updates between checkpoints, of which the last two are kept; 0: only at the end."""
    keep_trees_every: NonNegativeInt = 10
    """Updates between samples of trajectories written to the run folder; 0: none."""
    threads: PositiveInt | None = None
    """CPU threads of PyTorch; None: its own choice. Another number rounds differently."""
    run: Path = Path("runs/train")
    """Folder for everything the run writes."""
