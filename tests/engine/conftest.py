import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gw_detectron.data import register_shapes


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """The --dataset arguments of drawn images in COCO format, eight to train on and four others."""
    folder = tmp_path_factory.mktemp("with a space ")
    register_shapes(name := f"shapes {folder.name}", str(folder), num_train=8, num_val=4)
    DatasetCatalog.get(f"{name}_train")
    arguments = []
    for split in ("train", "val"):
        files = MetadataCatalog.get(f"{name}_{split}")
        arguments += ["--dataset", f"own_{split}", files.json_file, files.image_root]
    return arguments


@pytest.fixture(autouse=True)
def no_checkpoints_left(tmp_path):
    """pytest keeps the folders of three sessions, and a checkpoint is 90 MB."""
    yield
    for path in tmp_path.rglob("*.pth"):
        path.unlink()
