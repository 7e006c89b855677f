"""The Inception v3 of the FID literature: 2048 features of a picture, from a local folder of public weights.

The network is that of arXiv:1512.00567 with batch norm as TensorFlow's 2015-12-05 graph has it, which FID
(arXiv:1706.08500) is defined on: 1008 classes, no auxiliary classifier, means that leave the padding out, a maximum in
the last block. Modules are named as in torchvision, so that the weights of pytorch-fid fit.

A chain is written as layers in sequence ( > ), two of them on one input side by side ( & ). A layer is a name, the
output channels and the kernel, height x width; `max` and `mean` are pools. A kernel alone pads to keep the size, one
with "/2" or "/1" takes this stride and no padding.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

SIZE_PX, CLASSES = 299, 1008
RESIZE = f"bilinear to {SIZE_PX} px, no antialiasing"
WEIGHTS = "model.safetensors"
REMEDY = (
    "convert the public file in that folder: python -c "
    '"import torch; from safetensors.torch import save_file; '
    "w = torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True); "
    f"save_file({{k: v.contiguous() for k, v in w.items()}}, '{WEIGHTS}')\""
)

STEM = (
    "Conv2d_1a_3x3 32 3x3/2 > Conv2d_2a_3x3 32 3x3/1 > Conv2d_2b_3x3 64 3x3 > max 3x3/2 > "
    "Conv2d_3b_1x1 80 1x1 > Conv2d_4a_3x3 192 3x3/1 > max 3x3/2"
)


def block_35(pooled: int) -> tuple[str, ...]:
    """Returns the chains of a block on the 35 x 35 grid, with the channels of its pool branch."""
    return (
        "branch1x1 64 1x1",
        "branch5x5_1 48 1x1 > branch5x5_2 64 5x5",
        "branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3 > branch3x3dbl_3 96 3x3",
        f"mean 3x3 > branch_pool {pooled} 1x1",
    )


def block_17(inner: int) -> tuple[str, ...]:
    """Returns the chains of a block on the 17 x 17 grid, with the channels inside its long branches."""
    return (
        "branch1x1 192 1x1",
        f"branch7x7_1 {inner} 1x1 > branch7x7_2 {inner} 1x7 > branch7x7_3 192 7x1",
        f"branch7x7dbl_1 {inner} 1x1 > branch7x7dbl_2 {inner} 7x1 > branch7x7dbl_3 {inner} 1x7 > "
        f"branch7x7dbl_4 {inner} 7x1 > branch7x7dbl_5 192 1x7",
        "mean 3x3 > branch_pool 192 1x1",
    )


def block_8(pool: str) -> tuple[str, ...]:
    """Returns the chains of a block on the 8 x 8 grid, with the kind of its pool."""
    return (
        "branch1x1 320 1x1",
        "branch3x3_1 384 1x1 > branch3x3_2a 384 1x3 & branch3x3_2b 384 3x1",
        "branch3x3dbl_1 448 1x1 > branch3x3dbl_2 384 3x3 > branch3x3dbl_3a 384 1x3 & branch3x3dbl_3b 384 3x1",
        f"{pool} 3x3 > branch_pool 192 1x1",
    )


MIXED = {
    "Mixed_5b": block_35(32),
    "Mixed_5c": block_35(64),
    "Mixed_5d": block_35(64),
    "Mixed_6a": (
        "branch3x3 384 3x3/2",
        "branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3 > branch3x3dbl_3 96 3x3/2",
        "max 3x3/2",
    ),
    "Mixed_6b": block_17(128),
    "Mixed_6c": block_17(160),
    "Mixed_6d": block_17(160),
    "Mixed_6e": block_17(192),
    "Mixed_7a": (
        "branch3x3_1 192 1x1 > branch3x3_2 320 3x3/2",
        "branch7x7x3_1 192 1x1 > branch7x7x3_2 192 1x7 > branch7x7x3_3 192 7x1 > branch7x7x3_4 192 3x3/2",
        "max 3x3/2",
    ),
    "Mixed_7b": block_8("mean"),
    "Mixed_7c": block_8("max"),
}


def convolution(width: int, channels: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> nn.Module:
    """Returns a convolution without bias, batch norm and ReLU, with torchvision's names."""
    conv = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels, eps=0.001), relu=nn.ReLU()))


def layer(width: int, written: str) -> tuple[str, int, nn.Module]:
    """Returns name, output channels and module of a written layer whose input has `width` channels."""
    name, *channels, size = written.split()
    kernel, _, step = size.partition("/")
    height, wide = map(int, kernel.split("x"))
    stride, padding = (int(step), (0, 0)) if step else (1, (height // 2, wide // 2))
    if name == "max":
        return name, width, nn.MaxPool2d((height, wide), stride, padding)
    if name == "mean":
        return name, width, nn.AvgPool2d((height, wide), stride, padding, count_include_pad=False)
    out = int(channels[0])
    return name, out, convolution(width, out, (height, wide), stride, padding)


class Block(nn.Module):
    """Chains of layers on one input, their outputs concatenated (B, self.width, H, W)."""

    def __init__(self, width: int, chains: Sequence[str]) -> None:
        super().__init__()
        self.width, self.chains = 0, []
        for chain in chains:
            channels, steps = width, []
            for step in chain.split(" > "):
                beside = [layer(channels, written) for written in step.split(" & ")]
                for name, _, module in beside:
                    self.add_module(name, module)
                steps.append([name for name, _, _ in beside])
                channels = sum(out for _, out, _ in beside)
            self.chains.append(steps)
            self.width += channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the concatenated outputs."""
        outputs = []
        for steps in self.chains:
            y = x
            for names in steps:
                y = torch.cat([getattr(self, name)(y) for name in names], dim=1)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


class Inception(Block):
    """The whole network, in evaluation mode from the start; it is never trained here."""

    def __init__(self) -> None:
        super().__init__(3, [STEM])
        for name, chains in MIXED.items():
            block = Block(self.width, chains)
            self.add_module(name, block)
            self.width = block.width
        self.fc = nn.Linear(self.width, CLASSES)  # in the file, of no use to features
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features (B, 2048), means over the last grid, of pictures (B, 3, 299, 299) in [-1, 1]."""
        x = super().forward(x)
        for name in MIXED:
            x = getattr(self, name)(x)
        return x.mean((2, 3))

    @torch.inference_mode()
    def features(self, pictures: Sequence[np.ndarray], batch: int) -> Tensor:
        """Returns the features (N, 2048) of RGB uint8 pictures (H, W, 3), each of any size, `batch` at a time."""
        starts, device = range(0, len(pictures), batch), self.fc.weight.device
        stacks = (torch.stack([prepared(p) for p in pictures[start : start + batch]]) for start in starts)
        return torch.cat([torch.empty(0, self.width), *(self(stack.to(device)).cpu() for stack in stacks)])


def prepared(picture: np.ndarray) -> Tensor:
    """Returns a picture (3, 299, 299) in [-1, 1], resized without antialiasing as pytorch-fid does. Raises ValueError
    for anything but RGB uint8.
    """
    if str(picture.dtype) != "uint8" or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"Inception takes RGB uint8 pictures (H, W, 3), not {picture.dtype} {picture.shape}")
    x = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
    return 2 * functional.interpolate(x, (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)[0] - 1


def load(folder: Path) -> Inception:
    """Returns the network of folder/model.safetensors, every key matched. Raises ValueError that names the folder, what
    does not fit, and how to convert the public weights.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: no {WEIGHTS} with the Inception v3 weights of FID; {REMEDY}")
    try:
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # noqa: BLE001  safetensors raises its own class for a cut or foreign file
        raise ValueError(f"{folder / WEIGHTS}: broken safetensors file ({error}); {REMEDY}") from None
    with torch.device("meta"):
        network = Inception()
    wrong = misfits(network.state_dict(), weights)
    if wrong:
        raise ValueError(f"{folder / WEIGHTS}: not the Inception v3 of FID: {wrong}; {REMEDY}")
    network.load_state_dict(weights, strict=True, assign=True)
    return network.float().eval().requires_grad_(False)


def misfits(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Returns the first three missing keys, unexpected keys and wrong shapes, "" where all fit. Batch norm's count of
    training steps may be missing, old files have none.
    """
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    shapes = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    found = {
        "missing": missing,
        "unexpected": [key for key in given if key not in expected],
        "wrong shape": [f"{key} {list(given[key].shape)} for {list(expected[key].shape)}" for key in shapes],
    }
    return "; ".join(f"{kind} {', '.join(keys[:3])}" for kind, keys in found.items() if keys)
