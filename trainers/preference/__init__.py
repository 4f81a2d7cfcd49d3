"""Learning from comparisons and labels instead of advantages: losses, builders of examples, the learner."""
