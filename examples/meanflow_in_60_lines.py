"""Mean Flows (arXiv:2505.13447) on points of a plane: python meanflow_in_60_lines.py [FIGURE] [STEPS]"""

import math
import sys

import matplotlib
import torch
from torch import nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

figure = sys.argv[1] if len(sys.argv) > 1 else "meanflow_in_60_lines.png"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
batch, equal = 384, 288  # equal: the 75 % of a batch that have r = t
torch.manual_seed(0)
torch.set_num_threads(1)  # a network this small gains nothing from more


def ring(n):  # data x: eight Gaussians of std 0.1 on a circle of radius 2
    angle = torch.randint(8, (n,)) * math.pi / 4
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.1 * torch.randn(n, 2)


class Net(nn.Module):
    def __init__(self, width=128, depth=5):
        super().__init__()
        hidden = [nn.Linear(4, width), nn.SiLU()]
        for _ in range(depth - 1):
            hidden += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, z, r, t):  # u(z, r, t), conditioned on (t, t - r)
        return self.layers(torch.cat([z, t[:, None], (t - r)[:, None]], dim=1))


u = Net()
optimizer = torch.optim.Adam(u.parameters())
for step in range(steps):
    optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
    x, e = ring(batch), torch.randn(batch, 2)
    t, r = torch.rand(2, batch).sort(dim=0, descending=True).values  # t = 0 is data, t = 1 is noise
    r[:equal] = t[:equal]
    z = (1 - t[:, None]) * x + t[:, None] * e  # the path, section 3
    v = e - x  # its velocity
    u_equal = u(z[:equal], r[:equal], t[:equal])
    # du/dt = v . grad_z u + du/dt: the derivative along the tangent (v, 0, 1) of (z, r, t), eq. 8
    one = torch.ones(batch - equal)
    u_apart, dudt = torch.func.jvp(u, (z[equal:], r[equal:], t[equal:]), (v[equal:], 0 * one, one))
    # u_tgt = v - (t - r) du/dt, without gradient, eq. 10-11; where r = t it is v
    target = torch.cat([v[:equal], v[equal:] - (t - r)[equal:, None] * dudt]).detach()
    error = (torch.cat([u_equal, u_apart]) - target).square().sum(dim=1)  # ||D||^2, eq. 9
    loss = (error / (error.detach() + 1e-3)).mean()  # adaptive weight with p = 1, eq. 22
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    e, zero, one = torch.randn(2000, 2), torch.zeros(2000), torch.ones(2000)
    samples = e - u(e, zero, one)  # one call: x = e - u(e, r=0, t=1), eq. 12
_, panels = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for panel, points, title in zip(panels, (ring(2000), samples), ("data", "samples, one call"), strict=True):
    panel.scatter(*points.T, s=2)
    panel.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.savefig(figure, dpi=120)
print(f"{steps} steps; figure in {figure}")
