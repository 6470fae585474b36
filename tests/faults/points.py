"""Where a run can be made to kill itself, in the order in which a run that goes on after each comes to them."""

# The point's name: what is called there (module, class or "", function), and whether it comes before or after that.
POINTS = {
    "a batch is read": ("training.sources", "CachedSource", "batch", "before"),
    "a step begins": ("training.loop", "Training", "advance", "before"),
    "saving begins": ("training.loop", "Training", "save", "before"),
    "arrays leave the device": ("training.checkpoint", "", "_flat", "after"),
    "arrays are being written": ("training.checkpoint", "Checkpoints", "_complete", "before"),
    "arrays are written": ("training.checkpoint", "", "file_entries", "before"),
    "a step after a save has ended": ("training.loop", "Training", "_could_not_save", "before"),
    "the manifest begins": ("training.checkpoint", "", "write_manifest", "before"),
    "the manifest is written": ("training.checkpoint", "", "write_manifest", "after"),
    "the checkpoint has its name": ("training.checkpoint", "", "sync", "before"),
    "an old checkpoint is half removed": ("training.checkpoint", "shutil", "rmtree", "before"),
    "arrays are being restored": ("training.checkpoint", "Saver", "restore", "before"),
    "a line of metrics is half written": ("training.metrics", "Metrics", "write", "half"),
    "evaluating": ("training.programs", "Programs", "evaluate", "before"),
    "the model is being written": ("training.run", "", "save_bundle", "before"),
}
