"""Crews of actors: how they start, serve, are lost and leave."""
