"""`python -m tests.lanes DIR LANE`: writes this lane's checkpoint of a real state to DIR/LANE, then
opens that of every lane in DIR, verified leaf by leaf."""
from pathlib import Path
import shutil
import sys

from tests.runs import small_config
from vit_efficient.checkpoint import Checkpoints
from vit_efficient.run import assemble


def exchange(folder: Path, lane: str) -> list[str]:
    """Names of the lanes whose checkpoints were opened; raises for one that cannot be."""
    state = assemble(small_config()).fresh_state()
    like = assemble(small_config()).abstract_state()
    shutil.rmtree(folder / lane, ignore_errors=True)
    with Checkpoints(folder / lane) as checkpoints:
        checkpoints.save(1, state)
    opened = []
    for other in sorted(folder.iterdir()):
        with Checkpoints(other, read_only=True) as checkpoints:
            assert checkpoints.restore(like, 1)[0] == 1
        opened.append(other.name)
    return opened


if __name__ == "__main__":
    print(f"{sys.argv[2]} opened the checkpoints of", *exchange(Path(sys.argv[1]), sys.argv[2]))
