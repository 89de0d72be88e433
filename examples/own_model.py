"""A model and a data set of one's own.

python examples/own_model.py
"""

import torch
from torch import nn

import lanterne

# Any nn.Sequential: its children with parameters are the blocks, which a deadline cuts between.
model = nn.Sequential(
    nn.Linear(20, 64),
    nn.LayerNorm(64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 3),
)

# Three Gaussian classes; any floating-point tensors of shape [rows, *shape of a sample] will do.
random = torch.Generator().manual_seed(0)
y = torch.randint(3, (1200,), generator=random)
x = torch.randn(1200, 20, generator=random) + torch.eye(3, 20)[y] * 2
data = lanterne.Dataset.of(x[:1000], y[:1000], x[1000:], y[1000:], name="three classes")

result = lanterne.run(["salf", "drop"], data=data, model=model, clients=8, rounds=5, fleet={"kind": "stragglers"})
print(result.table)
print("per block:", lanterne.LayerStack(model, data.sample_shape).names)
