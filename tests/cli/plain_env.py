"""An environment of text that owes nothing to agentrl."""

from typing import Any

import gymnasium

from agentrl.envs import TextSpace


class Echo(gymnasium.Env[str, str]):
    """Ends when it is told to."""

    observation_space = action_space = TextSpace()

    def __init__(self, split: str = "test") -> None:
        self.split = split

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return f"say {seed}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return f"you said {action}", float(action == "stop"), action == "stop", False, {}


gymnasium.register("agentrl/Echo-v0", entry_point=Echo, disable_env_checker=True)  # type: ignore[arg-type]
