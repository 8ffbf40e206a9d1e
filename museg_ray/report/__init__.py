"""Pictures and the page of a run, from its folder alone."""
