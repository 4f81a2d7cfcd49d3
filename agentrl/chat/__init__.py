"""From messages to token ids and back: templates, tool-call markup, append-only suffixes."""
