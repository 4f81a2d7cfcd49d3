"""Rewards that are learned: a discriminator, values of steps."""
