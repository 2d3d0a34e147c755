"""IEE in a plain PyTorch loop: the statement that makes a network sparse, and what can be asked of it.

    python examples/own_loop.py

Takes some seconds, and needs no network.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import regrow

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:1500], order[1500:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.Flatten(), nn.Linear(64 * 16, 10),
)  # fmt: skip
epochs, batch = 30, 50
total_steps = epochs * len(train) // batch
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)

sparsifier = regrow.Sparsifier(
    model,
    optimizer,
    pattern=regrow.Weights(sparsity=0.95, distribution="erk"),
    method=regrow.IEE(h=20, j=20, q=20),
    total_steps=total_steps,
)

for _ in range(epochs):
    for index in train[torch.randperm(len(train))].split(batch):
        nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

sparsifier.finalize()
model.eval()
with torch.no_grad(), sparsifier.sparse():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
print(f"accuracy {accuracy:.1%} with {sparsifier.density():.1%} of the weights")
print(f"training cost {sparsifier.training_cost()['total']:.2f} × dense")
for update in sparsifier.history:
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in update.items()})
