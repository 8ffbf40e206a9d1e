"""Rewards of a grounding answer: parsing, segment matching, timestamp citation, format, and the actors that score.

Every reward is finite and in [0, 1] for any text whatever: one NaN would poison the advantages of its whole group.
"""
