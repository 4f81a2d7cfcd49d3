"""The policy engine on vLLM: in this process, or on servers."""
