"""RandAugment's operations on tones as slow NumPy forms: of an image x [H, W, 3], a level u in
[0, 1] and the level with its sign, s."""
import math

import numpy as np


def gray(x):
    return (x @ np.array([19595, 38470, 7471]) + 0x8000) >> 16          # ITU-R 601-2 luma


def blended(low, high, factor):
    return np.clip(low + factor * (high - low), 0, 255)


def autocontrast(x, u, s):
    out = x.copy()
    for c in range(3):
        low, high = x[..., c].min(), x[..., c].max()
        out[..., c] = (x[..., c] - low) * (255 / (high - low)) if high > low else x[..., c]
    return out


def equalize(x, u, s):
    out = x.copy()
    for c in range(3):
        counts = np.bincount(x[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        before = counts.cumsum() - counts
        out[..., c] = np.minimum((step // 2 + before) // step, 255)[x[..., c]]
    return out


def smoothed(x):
    out = x.astype(float)
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            out[i, j] = (x[i - 1:i + 2, j - 1:j + 2].sum((0, 1)) + 4 * x[i, j]) / 13
    return np.floor(out + 0.5)                                          # the edge stays as it is


TONES = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": lambda x, u, s: 255 - x,
    "Posterize": lambda x, u, s: x // 2 ** (4 + int(4 * u)) * 2 ** (4 + int(4 * u)),
    "Solarize": lambda x, u, s: np.where(x < 256 - int(256 * u), x, 255 - x),
    "SolarizeAdd": lambda x, u, s: np.where(x < 128, np.minimum(x + int(110 * u), 255), x),
    "Color": lambda x, u, s: blended(gray(x)[..., None], x, 1 + 0.9 * s),
    "Contrast": lambda x, u, s: blended(math.floor(gray(x).mean() + 0.5), x, 1 + 0.9 * s),
    "Brightness": lambda x, u, s: blended(0, x, 1 + 0.9 * s),
    "Sharpness": lambda x, u, s: blended(smoothed(x), x, 1 + 0.9 * s),
}
