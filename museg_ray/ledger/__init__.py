"""What became of every issue, and every response: books that only grow."""
