"""As-ViT's architecture strings, `K1,S1,E1[,L1]|K2,S2,E2[,L2]|K3,..|K4,..|H[,C]`.

As in the authors' PyTorch code (As-ViT, ICLR 2022, arXiv 2202.11921): for each of the four stages
the kernel of its way in, the windows a side, the MLP's ratio and the number of blocks; then the
heads of the first stage and its channels. The zoo's `asvit` parses its option `arch` by `parse`;
search and growth, whose strings leave out depths and channels, write them.

    parse("8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88").widths     # (88, 176, 352, 704)
"""
from typing import NamedTuple

MAX_WIDTH = 1024        # a part of the model: As-ViT-Large runs into it


class Topology(NamedTuple):
    """Kernel, split, MLP ratio and depth of each stage; heads of the last, width of the first."""
    kernels: tuple[int, ...]
    splits: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    depths: tuple[int, ...]
    heads: int
    width: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(MAX_WIDTH, self.width * 2 ** i) for i in range(4))

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Heads of each stage."""
        return tuple(self.heads // 8 * 2 ** i for i in range(4))

    def __str__(self) -> str:
        stages = zip(self.kernels, self.splits, self.mlp_ratios, self.depths)
        fields = [*stages, (self.heads, self.width)]
        return "|".join(",".join(map(str, field)) for field in fields)


def parse(arch: str) -> Topology:
    """The topology of a string; as in the official code, depths default to 1 and the width to 32.

    Raises ValueError naming the string, the field and what it may be.
    """
    def wrong(text: str):
        form = 4 * "K,S,E[,L]|" + "H[,C]"
        return ValueError(f"model.arch = {arch}: {text}; the form is {form}")

    fields = arch.split("|")
    if len(fields) != 5:
        raise wrong(f"{len(fields)} fields between bars, there must be 4 stages and a last field")
    numbers = []
    for i, field in enumerate(fields):
        where = f"stage {i + 1}" if i < 4 else "the last field"
        parts = field.split(",")
        if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise wrong(f"{where} is {field!r}, its parts must be whole numbers of at least 1")
        if len(parts) not in ((3, 4) if i < 4 else (1, 2)):
            raise wrong(f"{where} is {field!r}, it has {'3 or 4' if i < 4 else '1 or 2'} parts")
        numbers.append([int(part) for part in parts])
    *stages, last = numbers
    if len({len(stage) for stage in stages}) > 1:
        raise wrong("some stages have a depth L and some do not, give all or none")
    lists = zip(*(stage if len(stage) == 4 else [*stage, 1] for stage in stages))
    made = Topology(*lists, last[0], last[1] if len(last) == 2 else 32)
    first, *merging = made.kernels
    if first < 4:
        raise wrong(f"K1 = {first}, a kernel below the stride of 4 drops pixels")
    if (least := min(merging)) < 2:
        raise wrong(f"K{2 + merging.index(least)} = {least}, a merging kernel is at least 2")
    if made.heads % 8:
        raise wrong(f"H = {made.heads}, it must be a multiple of 8 (stage 1 has H / 8 heads)")
    for i, (heads, width) in enumerate(zip(made.num_heads, made.widths)):
        if heads > width:
            raise wrong(f"stage {i + 1} has {heads} heads for {width} channels")
    return made


def check_grid(arch: str, splits: tuple[int, ...], image_size: int) -> None:
    """Raises ValueError unless the finest four grids are whole and their splits divide them."""
    if image_size % 32:
        near = max(round(image_size / 32), 1) * 32
        raise ValueError(f"data.image_size = {image_size}: As-ViT needs a multiple of 32, "
                         f"the nearest is {near}")
    for i, split in enumerate(splits):
        side = image_size // (4 * 2 ** i)
        if side % split:
            allowed = [n for n in range(1, side + 1) if side % n == 0]
            raise ValueError(f"model.arch = {arch}: stage {i + 1} has a grid of {side} x {side} at "
                             f"data.image_size = {image_size}, a split of {split} does not divide "
                             f"it; allowed: {allowed}")
