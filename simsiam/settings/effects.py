"""Which settings change what a run learns, and which what a measurement finds."""

# A setting counts unless it is here: one that is forgotten here is refused, one too many here changes a run unseen.
FREE = frozenset((
    # Where things are. What lies there counts: the images by the data's hash, the encoder by subject.json.
    "out", "data", "download", "pretrained",
    # How it is computed. Order and views come from (seed, epoch, sample) in every loader; what is left is rounding,
    # which the facts of run/changes.py speak of. `precision` is not here: another choice of it is meant to change
    # arithmetic.
    "workers", "loader", "dali", "device", "compile", "cuda_graphs", "recompute", "deterministic",
    # When it begins, stops and is saved: the schedule is one of epochs or iterations, and max_steps cuts it off.
    "resume", "max_steps", "max_wall_time", "hang_timeout", "checkpoint",
    # What is checked before it begins. The number of ranks is a fact there.
    "world_size", "skip_preflight", "allow_change",
    # What is seen of it. None of these moves a weight; batch norm is put back after a look. Health may end a run, not
    # bend it. A trial of several is a run in a folder of its own.
    "log_every", "hide_progress", "profile", "knn_every", "knn", "health", "val_every", "test_every", "visualize",
    "trials",
    # Other runs: `debug` has a folder of its own and never goes on, `evaluate_only` trains nothing.
    "debug", "evaluate_only",
))  # fmt: skip
"""Settings, and sections of them, that do not change what is learned."""

FACTS = ("data", "code", "batchnorm")
"""What `--allow-change` admits beside settings: see run/changes.py."""

UNMEASURED = FREE - {"max_steps", "trials", "knn"}
"""Settings that do not change a result either, or that other hashes of it cover."""

OF_A_NODE = frozenset(("out", "data", "pretrained", "download", "workers", "loader", "dali", "hide_progress"))
"""Settings that may differ between the ranks of a job: where things are, and how a node reads them."""
