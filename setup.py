"""What pyproject.toml cannot say: configs/ is installed as `vit_efficient.configs`."""
from setuptools import find_packages, setup

packages = find_packages(include=["vit_efficient", "vit_efficient.*"])
setup(packages=[*packages, "vit_efficient.configs"],
      package_dir={"vit_efficient.configs": "configs"})
