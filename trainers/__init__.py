"""Recipes, losses and training loops."""
