"""The curves of a run as a picture."""
import numpy as np
from PIL import Image

from vit_efficient.engine import metrics
from vit_efficient.engine.curves import draw_curves


def test_curves_are_a_picture(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in range(1, 9):
        writer.write(step, {"loss": 2 / step, "top1": step / 9, "phase": step // 5})
    writer.write(8, {"val/top1": 0.9, "val/top1_ema": 0.95, "val/loss": 0.3})
    writer.close()
    image = np.asarray(Image.open(draw_curves(tmp_path)).convert("RGB"))
    assert image.shape[0] > 300 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50
