"""Rules over a checkpoint: each observes one kind of deviation and yields findings."""
