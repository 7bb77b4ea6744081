"""Trains the tiny Wan: drawn data, VAE, transformers, evaluation. See README.md here."""
