"""Layouts, memberships and process groups: which worker has which rank in which world."""
