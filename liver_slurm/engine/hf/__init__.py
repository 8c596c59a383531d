"""Weights of Hugging Face models, in and out."""
