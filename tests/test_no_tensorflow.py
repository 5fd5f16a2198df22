"""Nothing imports TensorFlow: training, evaluation, logs and plots run where it is missing."""
import subprocess
import sys

from tests.runs import ROOT

FORBID = """
import importlib, pkgutil, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "torch"):
            raise ImportError(f"{name} is forbidden here")

sys.meta_path.insert(0, Forbidden())
import vit_efficient
names = [m.name for m in pkgutil.walk_packages(vit_efficient.__path__, "vit_efficient.")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")
"""


def test_every_module_is_imported_without_tensorflow_and_torch():
    done = subprocess.run([sys.executable, "-c", FORBID], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 40
