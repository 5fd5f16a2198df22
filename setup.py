"""The one thing that pyproject.toml cannot say: configs/ is installed as `vit_efficient.configs`."""
from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vit_efficient", "vit_efficient.*"]), "vit_efficient.configs"],
      package_dir={"vit_efficient.configs": "configs"})
