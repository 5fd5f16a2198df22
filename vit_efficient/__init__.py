"""Efficient vision transformers in JAX: Scala, DVT, As-ViT, SReT and SViTE under one command."""
