"""Shows how to ask how many buckets pay: a W&B sweep, whose jobs run here, or on every machine that joins its agent.

python wandb_sweep.py            the jobs run here, one after the other; each is a W&B run that stays offline
python wandb_sweep.py --wandb    creates the sweep in Weights & Biases and runs its jobs with W&B's agent
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from fds_dist.cli import main

CONFIG = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "hidden": [16]},
    "inner": {"epochs": 2},
    "hyperparameters": {"lr": {"buckets": 1}, "momentum": 0.9},
    "outer": {"steps": 4},
    "tracking": {"wandb": {"mode": "online" if "--wandb" in sys.argv else "offline"}},
}
SWEEP = {
    "name": "buckets",
    "method": "grid",
    "metric": {"name": "best_val_loss", "goal": "minimize"},
    "parameters": {"hyperparameters.lr.buckets": {"values": [1, 3]}},
    "command": ["python", "-m", "fds_dist", "optimize", "search.yaml", "${args_no_hyphens}"],
}

if __name__ == "__main__":
    Path("search.yaml").write_text(yaml.safe_dump(CONFIG))
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    sys.exit(main(["sweep", "sweep.yaml", *([] if "--wandb" in sys.argv else ["--local"])]))
