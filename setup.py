"""What `pip install .`, `pip wheel .` and `pip install -e .` build."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The wheel carries the checkout's configs/ inside the package. An editable install has no such
# folder in the package: there gw_detectron.model_zoo falls back on configs/ itself.
CONFIGS = "gw_detectron.model_zoo.configs"


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="gw_detectron",
    version=runpy.run_path(str(ROOT / "gw_detectron" / "version.py"))["__version__"],
    description="Group Whitening (CVPR 2021) as a norm of Detectron2",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["gw_detectron", "gw_detectron.*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
    package_data={CONFIGS: ["**/*.yaml", "**/*.py"], "gw_detectron.runs": ["page.html"]},
    python_requires=">=3.10",
    # Detectron2 is not among them: no package index has it, so that pip could only fail on it. Its
    # users have it already, or follow its installation page or tools/install_detectron2.py; what
    # Detectron2 itself requires (pycocotools, omegaconf, PyYAML, ...) comes with it.
    install_requires=[
        "torch>=2.6",
        "numpy>=1.23",
        "contourpy",
        "jinja2",
        "Pillow",
        "pandas>=1.5",
        "tqdm",
    ],
    extras_require={"export": ["onnx", "onnxruntime"]},  # tools/export_model.py --format onnx
)
