"""Which LoRA adapters may leave an engine."""

from types import SimpleNamespace

from agentrl.policies.vllm.adapters import Adapters


def test_an_adapter_stays_until_the_last_request_that_began_with_it() -> None:
    adapters = Adapters()
    with adapters.used() as before:
        assert before == (None, 0)
        adapters.exchange(SimpleNamespace(lora_int_id=1), 5)
        assert adapters.unused() == []
    with adapters.used() as (first, version), adapters.used() as (second, _):
        assert first.lora_int_id == second.lora_int_id == 1
        assert version == 5
        adapters.exchange(SimpleNamespace(lora_int_id=2), 6)
        assert adapters.unused() == []
        with adapters.used() as (third, version):
            assert (third.lora_int_id, version) == (2, 6)
    adapters.exchange(SimpleNamespace(lora_int_id=3), 7)
    assert adapters.unused() == [1, 2]
    assert adapters.unused() == []  # said once
