"""`python -m tests.lanes DIR LANE`: trains a small run in DIR/LANE, then opens the checkpoints of
every lane in DIR, each leaf held against the fingerprint that its own lane has stored."""
from pathlib import Path
import shutil
import sys

from tests.runs import small_config
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.checkpoint import Checkpoints
from vit_efficient.jobs.train import train


def exchange(folder: Path, lane: str) -> list[str]:
    """Names of the lanes whose newest checkpoint was opened; raises for one that cannot be."""
    shutil.rmtree(folder / lane, ignore_errors=True)
    train(small_config(), folder / lane)
    run = assemble(small_config())
    opened = sorted(path.name for path in folder.iterdir())
    for other in opened:
        with Checkpoints(folder / other / "checkpoints", read_only=True) as checkpoints:
            step = checkpoints.restore(run.abstract_state, run.phases.total)[0]
            assert step == run.phases.total, f"{other} has no checkpoint of the last step"
    return opened


if __name__ == "__main__":
    opened = exchange(Path(sys.argv[1]).resolve(), lane=sys.argv[2])
    print(f"{sys.argv[2]} opened the checkpoints of", *opened)
