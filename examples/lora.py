"""Shows LoRA by peft: schedules for the adapters alone, which train anew and are saved as peft saves them.

The tangents are as long as the adapters (and the new head), not as long as the network.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fds_dist

WIDTH = 32


class Reader(nn.Module):
    """Attention over the rows of images [B, 8, 8] → logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Parameter(torch.zeros(8, WIDTH))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix, self.head = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, 10)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embed(rows) + self.place
        x = x + torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5, -1) @ self.value(x)
        return self.head(torch.relu(self.mix(x)).mean(1))


images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images = (images.float() / 8 - 1).reshape(-1, 8, 8)

torch.manual_seed(0)
network = Reader()  # pretrained on the digits as they are
optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
for _ in range(200):
    chosen = torch.randint(len(images), (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
    optimizer.step()

adapted = get_peft_model(network, LoraConfig(r=2, target_modules=["query", "value", "mix"], modules_to_save=["head"]))
adapted.print_trainable_parameters()
task = fds_dist.task_from_datasets((images.flip(1), labels), batch_size=64, val_fraction=0.3)  # upside down
config = {
    "inner": {"optimizer": "adamw", "steps": 40},
    "hyperparameters": {"lr": {"init": 1e-3, "buckets": 3}, "weight_decay": 0.01},
    "outer": {"steps": 4},
}
result = fds_dist.optimize(config, task=task, model=adapted)
print("validation accuracy of each outer step:", [record.val_accuracy for record in result.history])

done = fds_dist.retrain(result.run_dir, ["epochs=4"], task=task, model=adapted)
adapted.load_state_dict(load_file(done.results[0].folder / "last.safetensors"))
adapted.save_pretrained("adapter")  # the adapters and the head, a small part of the network
