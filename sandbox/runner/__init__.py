"""The program inside every sandbox. Standard library only, but for the messages that both sides read."""
