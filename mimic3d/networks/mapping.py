"""The mapping network, from a latent and a camera label to an intermediate latent w."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic3d.cameras import LABEL_SIZE
from mimic3d.networks.layers import FullyConnected, rms_normalize

LR_MULTIPLIER = 0.01
# The weight of its former value in the moving average of w, at each batch.
W_AVG_DECAY = 0.998


class Mapping(nn.Module):
    """Maps z and a camera label to w, one for each layer (StyleGAN2; conditioned as in EG3D, sec. 4.3)."""

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, layers: int) -> None:
        super().__init__()
        self.num_ws, self.layers = num_ws, layers
        self.embed = FullyConnected(LABEL_SIZE, w_dim)
        for index in range(layers):
            fan_in = z_dim + w_dim if index == 0 else w_dim
            layer = FullyConnected(fan_in, w_dim, activation=True, lr_multiplier=LR_MULTIPLIER)
            setattr(self, f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        camera: Tensor,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """
        Args:
            z: (N, z_dim), standard normal.
            camera: (N, 25), the camera that the generator is conditioned on.
            truncation: factor on the distance of w from its average: 1 leaves w as it is.
            truncation_cutoff: the number of first layers that are truncated; all when None.
            update_w_avg: updates the moving average of w with this batch.
        Returns:
            (N, num_ws, w_dim).
        """
        x = torch.cat([rms_normalize(z), rms_normalize(self.embed(camera))], dim=1)
        for index in range(self.layers):
            x = getattr(self, f"fc{index}")(x)
        if update_w_avg:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, W_AVG_DECAY))
        w = x[:, None].repeat(1, self.num_ws, 1)
        return self.truncate(w, truncation, truncation_cutoff)

    def truncate(self, w: Tensor, truncation: float, cutoff: int | None = None) -> Tensor:
        """w (N, num_ws, w_dim), interpolated from the average by `truncation`, in the first `cutoff` layers.

        Raises:
            ValueError: `cutoff` is not from 0 to num_ws.
        """
        if cutoff is not None and not 0 <= cutoff <= self.num_ws:
            raise ValueError(
                f"the truncation cutoff is {cutoff}, but must be from 0 to {self.num_ws}, the layers of w"
            )
        if truncation == 1:
            return w
        cutoff = self.num_ws if cutoff is None else cutoff
        return torch.cat([self.w_avg.lerp(w[:, :cutoff], truncation), w[:, cutoff:]], dim=1)
