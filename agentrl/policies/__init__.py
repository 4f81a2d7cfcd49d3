"""Engines that sample from language models."""
