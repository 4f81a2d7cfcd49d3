"""A hint reaches the policy, and nothing else: no environment, no tree."""

from typing import Any

import pytest
import torch
from rollout_scripts import Counting, random_script

from agentrl.errors import ConfigError
from agentrl.messages import assistant, system, user
from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.tasks import Task

SECRET = "Psst: the total is xylophone."
PLANS = {
    "single": GroupPlan(size=1),
    "group": GroupPlan(size=4),
    "branches": GroupPlan(size=6, initial=3, rule=BranchRule.RANDOM, alpha=0.7),
    "dynamic": GroupPlan(size=6, rule=BranchRule.AEPO, dynamic=True),
    "nodes": GroupPlan(size=6, initial=2, rule=BranchRule.RANDOM_NODES),
}


class Overhearing(Counting):
    """Keeps all that it is told and all that it says."""

    heard: list[str]

    def reset(self, **arguments: Any) -> Any:
        observation, info = super().reset(**arguments)
        self.heard += [repr(arguments), observation, repr(info)]
        return observation, info

    def step(self, action: str) -> Any:
        outcome = super().step(action)
        self.heard += [action, repr(outcome), repr(self.episode)]
        return outcome


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_hint_is_in_every_request_and_nowhere_else(make_collector: Any, byte_tokenizer: Any, plan: GroupPlan) -> None:
    """The script does not heed the hint, so the trees are those without it, mark aside."""
    prompts: list[str] = []

    def script(request: Request, text: str) -> Reply:
        prompts.append(text)
        return random_script(request, text)

    heard: list[str] = []
    env = type("Env", (Overhearing,), {"heard": heard})
    plain = make_collector(script, env).collect([3, 4], plan, seed=1)
    assert SECRET not in "".join(prompts)
    prompts.clear()
    hinted = make_collector(script, env).collect([3, 4], plan, seed=1, hints=[SECRET, SECRET])

    assert prompts
    for text in prompts:
        assert text.count(SECRET) == 1
        assert f".\n\n{SECRET}<|im_end|>\n<|im_start|>assistant\n" in text  # the end of what the user says
    assert "xylophone" not in "".join(heard)
    for tree in hinted:
        for leaf in tree.leaves:
            text = byte_tokenizer.decode(tree.token_ids(leaf.segment), skip_special_tokens=False)
            assert "xylophone" not in text
        assert "xylophone" not in str(tree.to_json())
        assert tree.metadata.pop("hinted") is True
    assert [tree.to_json() for tree in hinted] == [tree.to_json() for tree in plain]


def test_hints_by_place_and_by_task(make_collector: Any) -> None:
    prompts: dict[str, set[bool]] = {}

    def script(request: Request, text: str) -> Reply:
        question = text.split("Count to ")[1].split(".")[0]
        prompts.setdefault(question, set()).add(SECRET in text)
        return Reply("done")

    collector = make_collector(script)
    trees = collector.collect([3, 4, 5], GroupPlan(size=2), seed=0, hints=[None, SECRET, None])
    assert prompts == {"3": {False}, "4": {True}, "5": {False}}
    assert [tree.metadata.get("hinted", False) for tree in trees] == [False, True, False]
    prompts.clear()
    collector.collect([3, 4, 5], GroupPlan(size=2), seed=0, hints={5: SECRET, 9: SECRET})
    assert prompts == {"3": {False}, "4": {False}, "5": {True}}
    with pytest.raises(ConfigError, match="each of the 3 tasks, got 1"):
        collector.collect([3, 4, 5], GroupPlan(size=2), seed=0, hints=[SECRET])


def test_a_hint_goes_into_what_the_user_says_last(make_collector: Any) -> None:
    opening = (system("Be brief."), user("Hello."), assistant("Hello."), user("Count."), assistant("To what?"))

    class Talk(Counting):
        def tasks(self, split: str) -> Any:
            return [Task("talk", opening, "1"), Task("mute", (system("Begin."),), "1")]

    prompts: list[str] = []

    def script(request: Request, text: str) -> Reply:
        prompts.append(text)
        return Reply("done")

    collector = make_collector(script, Talk)
    collector.collect([0], GroupPlan(size=1), seed=0, hints={0: SECRET})
    assert f"user\nCount.\n\n{SECRET}<|im_end|>\n<|im_start|>assistant\nTo what?" in prompts[0]
    with pytest.raises(ConfigError, match="opens without one"):
        collector.collect([1], GroupPlan(size=1), seed=0, hints={1: SECRET})


@pytest.mark.parametrize("name", ["group", "branches"])
def test_a_model_samples_with_the_hint_in_front_of_it(
    make_collector: Any, tiny_llama: Any, byte_tokenizer: Any, chat: Any, name: str
) -> None:
    """Recorded log-probabilities are the model's after the hinted prompt, and not those after the plain one."""

    class Answering(Counting):
        """Every turn is taken for a call, so that there are results to branch after."""

        def step(self, action: str) -> Any:
            return super().step("<tool_call>\n{}\n</tool_call>")

    policy = TransformersPolicy(tiny_llama, byte_tokenizer, [byte_tokenizer.eos_token_id, *range(100, 160)])
    tree = make_collector(env=Answering, policy=policy).collect([2], PLANS[name], seed=2, hints=[SECRET])[0]
    env = Answering()
    messages = env.reset(options={"task": 2})[1]["messages"]
    told = [*messages[:-1], user(f"{messages[-1]['content']}\n\n{SECRET}")]
    env.close()
    schemas = [tool.schema for tool in env.tools]
    plain, hinted = chat.prompt_ids(messages, schemas), chat.prompt_ids(told, schemas)
    assert tree.segments[0].token_ids == plain
    for leaf in tree.leaves:
        path = tree.path(leaf.segment)[1:]
        after = [token for segment in path for token in segment.token_ids]
        mask = torch.tensor([bit for segment in path for bit in segment.action_mask], dtype=torch.bool)
        recorded = torch.tensor([logprob for segment in path for logprob in segment.logprobs])
        for prompt, is_context in ((hinted, True), (plain, False)):
            with torch.no_grad():
                logprobs = tiny_llama(torch.tensor([prompt + after])).logits[0].log_softmax(-1)
            expected = logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(after)[:, None])[:, 0]
            close = torch.allclose(recorded[mask], expected[mask], atol=1e-4)
            assert close == is_context
