"""From a graph to a replayable plan: materialize, fuse, lower, place in memory, run."""
