"""A trainer that opens an engine and is killed: run by `test_owner.py`."""

import asyncio
import time

from agentrl.policies.vllm.in_process import InProcessEngine


async def main() -> None:
    await InProcessEngine.open("quickstart", context_length=256, max_in_flight=4, num_top=4)
    print("open", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    asyncio.run(main())
