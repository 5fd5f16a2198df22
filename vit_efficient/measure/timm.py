"""A model's step beside timm's (PyTorch) on the same machine: in turns, timm in a process of its
own, so that neither library's threads, memory or CUDA meets the other's.

`measure/speed.py` makes a `Timm` for `--against=timm` and calls `compare`; the process runs
`_serve` and answers one question at a time, so that one of the two always waits. Read `compare`
first, then `Timm`, then what its process does. timm imports torchvision, which has no build for
CPUs beside torch's: `_Absent` stands in for it, since no model needs it.

    timm = Timm(config, num_classes=1000, image_size=224)
    compare(timm, {"train": train, "forward": forward}, rounds=3, steps=2)
    timm.close()
"""
from collections.abc import Callable
from functools import partial
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import sys
import time
from types import ModuleType

import jax
import numpy as np

KINDS = ("train", "forward")


class Timm:
    """timm's `model.name` in a process: `timm(way, kind, steps)` runs steps there and returns their
    wall and processor seconds; `way` is "eager" or "compile", `kind` one of KINDS.

    A training step is: normalise uint8 images, forward with drop path, cross-entropy, backward,
    clipping and EMA where the config has them, AdamW (fused). bfloat16 is autocast.
    """

    def __init__(self, config, num_classes: int, image_size: int):
        missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"--against=timm needs {' and '.join(missing)} installed beside JAX: "
                             f"pip install torch, pip install --no-deps timm")
        context = multiprocessing.get_context("spawn")    # forked, JAX's threads would be lost
        self._pipe, theirs = context.Pipe()
        settings = dict(
            name=config.model.name, num_classes=num_classes, image_size=image_size,
            batch_size=config.batch_size, bfloat16=config.dtype == "bfloat16",
            drop_path=config.model.get("drop_path", 0.1), clip_norm=config.optim.get("clip_norm"),
            ema_decay=config.step.get("ema_decay", 0.0), cuda=jax.default_backend() == "gpu")
        self._process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.versions = self._answer()

    def __call__(self, way: str, kind: str, steps: int) -> tuple[float, float]:
        self._pipe.send((way, kind, steps))
        return self._answer()

    def _answer(self):
        """What the process sends; RuntimeError with its message where it failed."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = "its process ended"
        if isinstance(answer, str):
            raise RuntimeError(f"timm: {answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def compare(timm: Timm, ours: dict[str, Callable], rounds: int, steps: int) -> dict[str, dict]:
    """Our steps and timm's in turns, `rounds` times: for every way and kind the median `ratio` of
    our time to timm's in the same round, its least and largest, and both medians in seconds a step.

    On the CPU the time is processor time, which other programs hardly disturb, else wall time. An
    untimed step comes first each time: it compiles, and takes memory that a process which waited
    may have lost (to a virtual machine's host: four seconds beside a DeiT-S step of five).

    Args:
      ours: of each kind `run(steps)`, which returns when they are done.
    """
    clock = int(jax.default_backend() == "cpu")
    seconds, failed = {}, {}
    for _ in range(rounds):
        for kind in KINDS:
            mine = _timed(ours[kind], steps)[clock] / steps
            for way in ("eager", "compile"):
                if way in failed:
                    continue
                try:
                    theirs = timm(way, kind, steps)[clock] / steps
                except RuntimeError as error:             # no compiler for torch.compile
                    failed[way] = str(error)
                    continue
                seconds.setdefault((way, kind), []).append((mine, theirs))
    result = {"clock": ("wall", "processor")[clock], **timm.versions, "failed": failed}
    for (way, kind), pairs in seconds.items():
        mine, theirs = np.array(pairs).T
        ratio = mine / theirs
        result[f"{kind} / timm {way}"] = {
            "ratio": float(np.median(ratio)), "least": float(ratio.min()),
            "largest": float(ratio.max()), "seconds": float(np.median(mine)),
            "timm_seconds": float(np.median(theirs))}
    return result


def _timed(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Wall and processor seconds of `run(steps)`, after an untimed step."""
    run(1)
    wall, processor = time.perf_counter(), time.process_time()
    run(steps)
    return time.perf_counter() - wall, time.process_time() - processor


def _serve(pipe, settings: dict) -> None:
    """The other process: answers `(way, kind, steps)` with seconds, or with a text for an error."""
    try:
        versions, runs = _torch_runs(**settings)
        pipe.send(versions)
    except Exception as error:
        return pipe.send(f"{type(error).__name__}: {error}")
    while True:
        try:
            way, kind, steps = pipe.recv()
        except EOFError:
            return None
        try:
            pipe.send(_timed(runs[way, kind], steps))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _torch_runs(*, name: str, num_classes: int, image_size: int, batch_size: int, bfloat16: bool,
                drop_path: float, clip_norm: float | None, ema_decay: float,
                cuda: bool) -> tuple[dict, dict]:
    """The versions, and `run(steps)` for every (way, kind)."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Absent())
    import timm
    from timm.utils import ModelEmaV3
    import torch
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")            # TF32 on a GPU, as JAX has it
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    images, labels = images.to(device), torch.randint(num_classes, (batch_size,), device=device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1)
                 for x in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD))
    low = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)
    runs = {}
    for way in ("eager", "compile"):
        model = timm.create_model(name, num_classes=num_classes, drop_path_rate=drop_path,
                                  img_size=image_size).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
        ema = ModelEmaV3(model, decay=ema_decay) if ema_decay else None
        run = torch.compile(model) if way == "compile" else model

        def train(steps, model=model, run=run, optimizer=optimizer, ema=ema):
            model.train()
            for _ in range(steps):
                with low():
                    logits = run((images.float() / 255 - mean) / std)
                    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                if clip_norm:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                if ema:
                    ema.update(model)
            loss.item()                                   # waits for the device

        def forward(steps, model=model, run=run):
            model.eval()
            with torch.inference_mode(), low():
                for _ in range(steps):
                    logits = run((images.float() / 255 - mean) / std)
            logits.sum().item()
        runs |= {(way, "train"): train, (way, "forward"): forward}
    return {"torch": torch.__version__, "timm": timm.__version__}, runs


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that hold any name, for torchvision, which timm imports for its image transforms and
    its models do not need."""

    def find_spec(self, name, path=None, target=None):
        mine = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module):
        pass


class _AnyName(type):
    def __getattr__(cls, name):
        return _any(name)


class _Anything(ModuleType):
    def __getattr__(self, name):
        return _any(name)


def _any(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _AnyName(name, (), {})
