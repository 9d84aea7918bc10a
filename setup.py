"""Packaging of recbole-llmd; the dependency ranges live here, the exact versions CI runs in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "recbole_llmd" / "version.py").read_text()).group(1)
PROPERTIES = ["recbole_llmd.properties"] + [
    f"recbole_llmd.properties.{folder.name}" for folder in sorted((HERE / "properties").iterdir()) if folder.is_dir()
]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100"]
LINT = ["ruff>=0.17", "mypy>=2.4", "types-PyYAML", "types-tabulate", "types-tqdm"]

setup(
    name="recbole-llmd",
    version=VERSION,
    description="LLM distillation and unlearning for RecBole 1.2.1, on a current Python stack",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["recbole_llmd", "recbole_llmd.*"]) + PROPERTIES,
    # The property files stand at the top of the repository, where a RecBole user looks for them.
    package_dir={"recbole_llmd": "recbole_llmd", "recbole_llmd.properties": "properties"},
    package_data={"recbole_llmd": ["py.typed"], **{name: ["*.yaml"] for name in PROPERTIES}},
    python_requires=">=3.10",
    install_requires=[
        # RecBole asks for ray <= 2.6.3, which has no wheel for Python 3.12 and newer: there RecBole is installed
        # with --no-deps (README) and its other dependencies come from this list.
        'recbole==1.2.1; python_version < "3.12"',
        "torch>=2.4",
        "transformers>=5.0",
        "peft>=0.18",
        "safetensors>=0.4",
        "gguf>=0.10",
        "numpy>=1.26,<3",
        "scipy>=1.11",
        "pandas>=2.0,<4",
        "pyyaml>=5.1",
        "tqdm>=4.48.2",
        "colorlog==4.7.2",
        "colorama==0.4.4",
        "scikit-learn>=1.3",
        "threadpoolctl>=3.1",
        "tensorboard>=2.5",
        "thop>=0.1.1.post2207130030",
        "tabulate>=0.8.10",
        "plotly>=4.0",
        "texttable>=0.9",
        "psutil>=5.9",
        'setuptools; python_version >= "3.12"',
    ],
    extras_require={"test": TEST, "dev": TEST + LINT},
    entry_points={"console_scripts": ["recbole-llmd=recbole_llmd.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
