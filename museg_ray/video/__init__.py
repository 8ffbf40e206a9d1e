"""From a video file to a Clip: which frames, at which size, decoded once, with guard rails."""
