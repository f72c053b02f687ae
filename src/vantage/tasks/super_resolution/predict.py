"""Image files of any size, enlarged tile by tile: what is held is the file, the result and one tile."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vantage.data.info import DataInfo
from vantage.ops.resize import resize
from vantage.tasks.files import Report, unique_names
from vantage.tasks.super_resolution.inference import Upscale
from vantage.tasks.super_resolution.picture_files import PictureFile, read_picture, write_picture

LUMA = (0.299, 0.587, 0.114)  # of the full range, as pictures become grey when a network of one channel is trained


def predict_files(
    network: Callable[[Tensor], Tensor],
    upscale: Upscale,
    files: Sequence[Path],
    info: DataInfo,
    *,
    folder: Path,
    device: torch.device | str = "cpu",
) -> Report:
    """Writes upscaled/NAME.png into `folder`, of the file's own depth, grey if it is grey, with its transparency.

    network  (B, C, h, w), normalised -> (B, C, scale h, scale w), normalised alike
    """
    predictions, failed = [], []
    names = unique_names(files)
    for file in files:
        started = time.perf_counter()
        try:
            picture = read_picture(file)
        except Exception as error:  # whatever a decoder raises on broken input
            failed.append((file, " ".join(str(error).split()) or type(error).__name__))
            continue
        with torch.inference_mode():
            made = enlarge(network, upscale, picture, info, device)
        path = Path("upscaled") / f"{names[file]}.png"
        write_picture(folder / path, made)
        predictions.append(
            {
                "file": str(file),
                "size": list(picture.pixels.shape[-2:]),
                "scale": upscale.scale,
                "bits": 8 if picture.top == 255 else 16,
                "picture": str(path),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    content = {
        "predictions": predictions,
        "failed": [{"file": str(file), "reason": reason} for file, reason in failed],
    }
    return Report(content, len(predictions), failed)


def enlarge(
    network: Callable[[Tensor], Tensor],
    upscale: Upscale,
    picture: PictureFile,
    info: DataInfo,
    device: torch.device | str,
) -> PictureFile:
    """The picture `scale` times as large. Transparency is enlarged bicubically; so are the colours of a colour picture
    where the network knows brightness only."""
    pixels, top, scale = picture.pixels, picture.top, upscale.scale
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (info.mean, info.std))

    def whole_range(piece: Tensor) -> Tensor:
        """(1, chans, h, w) in 0..top -> (1, chans, scale h, scale w) in 0..1"""
        x = piece.to(device).float() / top
        if len(info.mean) == x.shape[1]:
            return network((x - mean) / std) * std + mean
        if x.shape[1] == 1:
            return (network((x.expand(-1, 3, -1, -1) - mean) / std) * std + mean).mean(1, keepdim=True)
        grey = torch.tensordot(torch.tensor(LUMA, device=x.device), x, dims=([0], [1]))[:, None]
        return resize(x, scale) + (network((grey - mean) / std) * std + mean) - resize(grey, scale)

    alpha = None
    if picture.alpha is not None:
        bicubic = replace(upscale, ensemble=False)
        alpha = assembled(lambda piece: resize(piece.float() / top, scale), bicubic, picture.alpha, top)
    return PictureFile(assembled(whole_range, upscale, pixels, top), alpha, top)


def assembled(network: Callable[[Tensor], Tensor], upscale: Upscale, pixels: Tensor, top: int) -> Tensor:
    height, width = pixels.shape[-2:]
    made = pixels.new_empty(len(pixels), upscale.scale * height, upscale.scale * width)
    for (rows, columns), values in upscale.tiles(network, pixels):
        made[:, rows, columns] = (values.float() * top).round_().clamp_(0, top).to(made)
    return made
