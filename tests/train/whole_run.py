"""Settings of the run that several tests look at, and that another one kills and repeats."""

WHOLE_RUN = [
    "--seed=5",
    "--resume",  # there is nothing to resume: the same command goes on with a run that was killed
    "model.path=museg-tiny",  # its rewards differ within a group; those of random weights are all 0
    "train.phases=[{name: timestamps, steps: 2, prompt: 'Find {question}. Cite times.', weights: {timestamp: 1}},"
    " {name: free, steps: 2, prompt: 'Find {question}.', fresh_optimizer: true, fresh_reference: true}]",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=2",
    "evaluation.num_queries=4",
    "evaluation.max_completion_tokens=96",
    "rollout.max_completion_tokens=48",
    "learner.learning_rate=1e-3",  # so that four steps change greedy answers
    "learner.warmup_steps=0",
    "learner.num_threads=1",
    # One sequence at a time: what vLLM computes together is rounded together, and that would depend on timing.
    "rollout.num_actors=1",
    "rollout.max_num_seqs=1",
    "rollout.num_threads=1",
    "rollout.group_size=4",
]
