"""The synthetic grounding corpus: coloured shapes that come, move and go, rendered as real H.264 mp4 files."""
