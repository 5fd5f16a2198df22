"""Clips as folders of frames, `path/train|val/<class>/<clip>/<frame>`: an example is one clip, of
which some frames are seen, evenly spaced.

`data/sources.open_data` calls `open_clips` for `data.source = clips`; `data/frames.py` chooses the
frames, so that only those are read and decoded. A video becomes such a folder by
`ffmpeg -i CLIP.avi PATH/train/CLASS/CLIP/%d.jpg`.

    train, val = open_clips(Path("/data/ucf101"), "data.path", frames=8)
    clip, label = train[0]
    clip[3]                                           # the fourth frame, decoded now
"""
import os
from pathlib import Path
import re

import numpy as np

from vit_efficient.data.formats.folders import EXTENSIONS, is_image, listed, open_folders
from vit_efficient.data.formats.retry import patiently
from vit_efficient.data.host import images
from vit_efficient.data.host.jpeg import Jpeg


class Clip:
    """The frames of a clip in their order in time: `len(clip)`, and `clip[i]` uint8 [h, w, 3] or a
    `jpeg.Jpeg`; `badrecords.BadImage` for a frame that is no whole image."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray | Jpeg:
        path = self.folder / self.names[i]
        return images.decode(patiently(path.read_bytes, str(path)), str(path))


class ClipFolder:
    """`folder/<class>/<clip>/<frame>`: labels are places in `classes`, clips in the order of their
    names, frames in that of the numbers in theirs (`9.jpg` before `10.jpg`); of a clip, `frames`
    are seen. Hidden files and folders, and files without an image's extension, are left out."""
    HOLDS = "clips (folders of frames)"
    max_bad_records, frames = 0, 8

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder, self.classes = Path(folder), classes
        self.names, self.labels = listed(self.folder, classes, _folder_names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Clip, int]:
        folder = self.path(i)
        names = patiently(lambda: _frame_names(folder), str(folder))
        if not names:
            raise images.BadImage(f"{folder}: a clip without frames")
        return Clip(folder, names), int(self.labels[i])

    def path(self, i: int) -> Path:
        """The folder of clip `i`."""
        return self.folder / self.classes[self.labels[i]] / os.fsdecode(self.names[i].item())

    def __str__(self) -> str:
        return str(self.folder)


def open_clips(path: Path, key: str, frames: int) -> tuple[ClipFolder, ClipFolder]:
    """The training and validation clips under `path`, the value of the config key `key`, of each of
    which `frames` are seen; ValueError says what is missing there, and names a clip without
    frames."""
    train, val = splits = open_folders(path, key, ClipFolder)
    train.frames = val.frames = frames
    empty = [split.path(i) for split in splits for i in range(len(split))
             if not _has_frames(split.path(i))]
    if empty:
        raise ValueError(f"{key} = '{path}': no frames ({' '.join(EXTENSIONS)}) in {empty[0]}"
                         + (f" and {len(empty) - 1} other clips" if empty[1:] else ""))
    return splits


def _folder_names(folder: Path) -> list[bytes]:
    """Sorted; a class that this split does not have holds none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(os.fsencode(entry.name) for entry in entries
                          if entry.is_dir() and entry.name[0] != ".")
    except FileNotFoundError:
        return []


def _has_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _frame_names(folder: Path) -> list[str]:
    """In the order of the numbers in them, then of the rest."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name)]
    numbered = lambda name: [int(part) if part.isdecimal() else part
                             for part in re.split(r"(\d+)", name)]
    return sorted(names, key=lambda name: (numbered(name), name))
