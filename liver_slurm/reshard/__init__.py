"""The transfer plan: which box of which tensor goes from which rank to which. Without torch."""
