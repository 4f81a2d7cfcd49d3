"""The back end `bubblewrap`: the kernel's own isolation, without an engine."""
