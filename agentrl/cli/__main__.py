"""`python -m agentrl.cli` is `agentrl`, for a checkout that is not installed."""

from agentrl.cli.main import main

main()
