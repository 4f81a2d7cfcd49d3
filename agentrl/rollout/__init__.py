"""Episodes, groups and branching: where policies and environments meet."""
