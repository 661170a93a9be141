"""What other projects call a setting: facebookresearch, PatrickHua, solo-learn, lightly and VISSL, shortest first."""

FOREIGN = {
    "a": "encoder", "arch": "encoder", "backbone": "encoder",
    "b": "batch_size", "batch": "batch_size", "batch_size_per_device": "batch_size",
    "j": "workers", "num_workers": "workers",
    "p": "log_every", "print_freq": "log_every",
    "lr": "optim.lr", "base_lr": "optim.lr", "learning_rate": "optim.lr",
    "wd": "optim.weight_decay", "weight_decay": "optim.weight_decay", "momentum": "optim.momentum",
    "optimizer": "optim.name", "lars": "optim.name lars", "schedule": "optim.schedule", "cos": "optim.schedule cosine",
    "warmup_epochs": "optim.warmup_epochs", "fix_pred_lr": "optim.predictor_lr constant",
    "dim": "method.dim", "pred_dim": "method.predictor_hidden", "proj_layers": "method.projector_layers",
    "max_epochs": "epochs", "num_epochs": "epochs", "image_size": "views.size", "crop_size": "views.size",
    "data_dir": "data", "train_data_path": "data", "dataset": "data",
    "log_dir": "out", "ckpt_dir": "checkpoint.folder", "checkpoint_dir": "out", "save_dir": "out", "output_dir": "out",
    "start_epoch": "resume", "resume_from_checkpoint": "resume", "ckpt": "resume", "eval_from": "pretrained",
    "config": "recipe", "config_file": "recipe", "amp": "precision", "fp16": "precision fp16", "gpu": "device cuda",
}  # fmt: skip
"""Their option -> ours, with a value where theirs is a switch."""
