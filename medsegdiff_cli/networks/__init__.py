"""Networks: plain `nn.Module`s for 2D and 3D, without any knowledge of diffusion, data or training."""
